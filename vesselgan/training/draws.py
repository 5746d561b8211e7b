"""What is random in a training step: latents and epsilons, as a function of seed and position alone.

N batch (this rank's part), L latent
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Latents and epsilons of the global batch at a position, cut to this rank's part."""

    seed: int
    batch_size: int
    latent_size: int
    rank: int
    world_size: int

    def latents_NL(self, stream: int, position: int) -> Tensor:
        """Standard normal; `stream` 0 for the critic's steps, 1 for the generator's."""
        return self._mine(
            self._source(stream, position).standard_normal((self.batch_size, self.latent_size), np.float32)
        )

    def dealt_NL(self, stream: int, position: int, count: int) -> Tensor:
        """As many latents for a batch whose size is drawn by chance: ranks take its samples in turn, not in blocks."""
        until = (count - 1) * self.world_size + self.rank + 1 if count else 0
        rows = self._source(stream, position).standard_normal((until, self.latent_size), np.float32)
        return torch.from_numpy(rows[self.rank :: self.world_size])

    def epsilons_N(self, position: int) -> Tensor:
        """Uniform on [0, 1): where on the line between real and fake the penalty is taken."""
        return self._mine(self._source(2, position).random(self.batch_size, np.float32))

    def _source(self, stream: int, position: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, stream, position]))

    def _mine(self, values: np.ndarray) -> Tensor:
        part = self.batch_size // self.world_size
        return torch.from_numpy(values[self.rank * part : (self.rank + 1) * part])
