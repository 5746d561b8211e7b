"""Latents, epsilons, noise and times of a training step, as a function of seed and position alone.

A private critic's latents are a function of its secret key, the position and their patch. Assigned by index in the
batch, removing one unit would change the latents, and so the gradients, of all units after it.

N batch (this rank's slice), L latent, C channel, X Y Z voxels
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

_PRIVATE_STREAM = 0xFA


class Stream(IntEnum):
    """Who draws: streams of one seed are independent. The numbers are part of every result."""

    CRITIC_LATENTS = 0
    GENERATOR_LATENTS = 1
    PENALTY_EPSILONS = 2
    STANDING_LATENTS = 3
    TIMES = 4
    VOXELS = 5


@dataclass(frozen=True)
class NoiseSampler:
    """This rank's slice of the latents and epsilons of the global batch at a position."""

    seed: int
    batch_size: int
    """Of all ranks."""
    latent_size: int
    of_rank: slice = field(default_factory=lambda: slice(None))
    """This rank's part of the batch; by default all of it."""

    def latents_NL(self, stream: Stream, position: int) -> Tensor:
        """Standard normal."""
        rng = self._generator(stream, position)
        return torch.from_numpy(rng.standard_normal((self.batch_size, self.latent_size), np.float32)[self.of_rank])

    def epsilons_N(self, position: int) -> Tensor:
        """Uniform on [0, 1): the penalty's positions on the lines between real and fake."""
        rng = self._generator(Stream.PENALTY_EPSILONS, position)
        return torch.from_numpy(rng.random(self.batch_size, np.float32)[self.of_rank])

    def times_N(self, position: int) -> Tensor:
        """On [0, 1): one uniform number for the batch, whose samples stand 1 / batch_size apart (stratified)."""
        first = self._generator(Stream.TIMES, position).random()
        times = (first + np.arange(self.batch_size) / self.batch_size) % 1
        return torch.from_numpy(times.astype(np.float32)[self.of_rank])

    def voxels(self, position: int, shape_CXYZ: Sequence[int], device: torch.device) -> Tensor:
        """Standard normal [N, C, X, Y, Z], drawn on the device: its numbers differ between CPU and GPU."""
        rows = range(self.batch_size)[self.of_rank]
        noise_NCXYZ = torch.empty(len(rows), *shape_CXYZ, device=device)
        generator = torch.Generator(device)
        for row, noise_CXYZ in zip(rows, noise_NCXYZ, strict=True):
            sequence = np.random.SeedSequence((self.seed, Stream.VOXELS, position, row))
            generator.manual_seed(int(sequence.generate_state(1, np.uint32)[0]))
            noise_CXYZ.normal_(generator=generator)
        return noise_NCXYZ

    def _generator(self, stream: Stream, position: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, int(stream), position]))


def latents_by_patch_NL(key: int, position: int, patches: Sequence[int], latent_size: int) -> Tensor:
    """Standard normal, one row per patch; no row depends on the other patches."""
    rows = np.empty((len(patches), latent_size), np.float32)
    for row, patch in zip(rows, patches, strict=True):
        philox = np.random.Philox(np.random.SeedSequence((key, position, patch, _PRIVATE_STREAM)))
        np.random.Generator(philox).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(rows)
