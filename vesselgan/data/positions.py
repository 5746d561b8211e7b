"""Where patches were cut, as a condition of a generator: the patch's centre in its subject's volume.

A function of the patch's own record, not of the patches beside it: for differential privacy, one that is added or
removed must not move another. N patches; a position is -1 to 1 along each axis.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vesselgan.data.sampler import batch_indices
from vesselgan.formats.shards import ShardSet


class Places(NamedTuple):
    """Of patches, each in its own volume."""

    position_N3: Tensor
    """float32, the centres."""
    extent_N3: Tensor
    """float32, the shares of each axis that they take."""

    def of(self, indices: Sequence[int]) -> "Places":
        """Those of the patches with these indices."""
        return Places(self.position_N3[list(indices)], self.extent_N3[list(indices)])


def positions_of(shards: ShardSet) -> Tensor:
    """float32 [N, 3] of every patch. Raises DataError where the shards do not say how large the volumes are."""
    return places_of(shards).position_N3


def places_of(shards: ShardSet) -> Places:
    """Where every patch was cut. Raises DataError as `positions_of` does."""
    corners_N3 = np.array([shards.corner(i) for i in range(len(shards))])
    volumes_N3 = np.array([shards.volume_shape(i) for i in range(len(shards))])
    patch_3 = np.array(shards.patch_shape)
    positions_N3 = 2 * (corners_N3 + patch_3 / 2) / volumes_N3 - 1
    extents_N3 = patch_3 / volumes_N3
    return Places(*(torch.from_numpy(value.astype(np.float32)) for value in (positions_N3, extents_N3)))


def position_stream(
    positions_N3: Tensor, *, batch_size: int, seed: int, start: int, stop: int, of_rank: slice = slice(None)
) -> Iterator[Tensor]:
    """The positions of the batches that `data.patches.stream` gives for the same arguments."""
    for position in range(start, stop):
        yield positions_N3[batch_indices(len(positions_N3), batch_size, seed, position)[of_rank]]
