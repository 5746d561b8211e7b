"""Where patches were cut, as a condition of a generator: the patch's centre in its subject's volume.

A function of the patch's own record, not of the patches beside it: for differential privacy, one that is added or
removed must not move another. N patches; a position is -1 to 1 along each axis.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vesselgan.data.sampler import batch_indices
from vesselgan.formats.shards import ShardSet


def positions_of(shards: ShardSet) -> Tensor:
    """float32 [N, 3] of every patch. Raises DataError where the shards do not say how large the volumes are."""
    return positions_and_extent_of(shards)[0]


def positions_and_extent_of(shards: ShardSet) -> tuple[Tensor, Tensor]:
    """Also float32 [3]: share of each axis of the volume that a patch takes, the mean over the patches."""
    corners_N3 = np.array([shards.corner(i) for i in range(len(shards))])
    volumes_N3 = np.array([shards.volume_shape(i) for i in range(len(shards))])
    patch_3 = np.array(shards.patch_shape)
    positions_N3 = 2 * (corners_N3 + patch_3 / 2) / volumes_N3 - 1
    extent_3 = torch.from_numpy((patch_3 / volumes_N3).astype(np.float32)).mean(0)
    return torch.from_numpy(positions_N3.astype(np.float32)), extent_3


def position_stream(
    positions_N3: Tensor, *, batch_size: int, seed: int, start: int, stop: int, of_rank: slice = slice(None)
) -> Iterator[Tensor]:
    """The positions of the batches that `data.patches.stream` gives for the same arguments."""
    for position in range(start, stop):
        yield positions_N3[batch_indices(len(positions_N3), batch_size, seed, position)[of_rank]]
