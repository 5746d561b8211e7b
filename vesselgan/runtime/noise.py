"""What is random in a training step: latents and epsilons, as a function of seed and position alone.

A private critic's latents are a function of its secret key, the position and the record they go with: were they dealt
by place in the batch, one unit less would give all that follow it other latents, and so other gradients.

N batch (this rank's part), L latent
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_STREAM = 0xFA


@dataclass(frozen=True)
class NoiseSampler:
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

    def epsilons_N(self, position: int) -> Tensor:
        """Uniform on [0, 1): where on the line between real and fake the penalty is taken."""
        return self._mine(self._source(2, position).random(self.batch_size, np.float32))

    def _source(self, stream: int, position: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, stream, position]))

    def _mine(self, values: np.ndarray) -> Tensor:
        part = self.batch_size // self.world_size
        return torch.from_numpy(values[self.rank * part : (self.rank + 1) * part])


def latents_by_record_NL(key: int, position: int, records: Sequence[int], latent_size: int) -> Tensor:
    """Standard normal, a row for each of these records; no row depends on which other records there are."""
    rows = np.empty((len(records), latent_size), np.float32)
    for row, record in zip(rows, records, strict=True):
        source = np.random.Philox(np.random.SeedSequence((key, position, record, _STREAM)))
        np.random.Generator(source).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(rows)
