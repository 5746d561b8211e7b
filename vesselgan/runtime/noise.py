"""Latents and epsilons of a training step, as a function of seed and position alone.

A private critic's latents are a function of its secret key, the position and their record. Assigned by index in the
batch, removing one unit would change the latents, and so the gradients, of all units after it.

N batch (this rank's slice), L latent
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_STREAM = 0xFA


@dataclass(frozen=True)
class NoiseSampler:
    """This rank's slice of the latents and epsilons of the global batch at a position."""

    seed: int
    batch_size: int
    latent_size: int
    rank: int
    world_size: int

    def latents_NL(self, stream: int, position: int) -> Tensor:
        """Standard normal; `stream` 0 for the critic's steps, 1 for the generator's."""
        rng = self._generator(stream, position)
        return self._slice(rng.standard_normal((self.batch_size, self.latent_size), np.float32))

    def epsilons_N(self, position: int) -> Tensor:
        """Uniform on [0, 1): the penalty's positions on the lines between real and fake."""
        return self._slice(self._generator(2, position).random(self.batch_size, np.float32))

    def _generator(self, stream: int, position: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, stream, position]))

    def _slice(self, values: np.ndarray) -> Tensor:
        size = self.batch_size // self.world_size
        return torch.from_numpy(values[self.rank * size : (self.rank + 1) * size])


def latents_by_record_NL(key: int, position: int, records: Sequence[int], latent_size: int) -> Tensor:
    """Standard normal, one row per record; no row depends on the other records."""
    rows = np.empty((len(records), latent_size), np.float32)
    for row, record in zip(rows, records, strict=True):
        philox = np.random.Philox(np.random.SeedSequence((key, position, record, _STREAM)))
        np.random.Generator(philox).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(rows)
