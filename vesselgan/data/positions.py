"""Where patches were cut, as a condition of a generator: the patch's centre in the box of its subject's patches.

N patches; a position is -1 to 1 along each axis.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vesselgan.data.sampler import batch_indices
from vesselgan.formats.shards import ShardSet


def positions_of(shards: ShardSet) -> Tensor:
    """float32 [N, 3] of every patch. A subject's box is the smallest that holds all of its patches."""
    return positions_and_extent_of(shards)[0]


def positions_and_extent_of(shards: ShardSet) -> tuple[Tensor, Tensor]:
    """Also float32 [3]: share of each axis of the box that a patch takes, the mean over the patches."""
    corners_N3 = np.array([shards.corner(i) for i in range(len(shards))], np.float64)
    subjects = np.array([shards.subject(i) for i in range(len(shards))])
    positions_N3, extents_N3 = np.zeros_like(corners_N3), np.zeros_like(corners_N3)
    for subject in np.unique(subjects):
        own = subjects == subject
        low_3, high_3 = corners_N3[own].min(0), corners_N3[own].max(0) + shards.patch_shape
        positions_N3[own] = 2 * (corners_N3[own] + np.array(shards.patch_shape) / 2 - low_3) / (high_3 - low_3) - 1
        extents_N3[own] = np.array(shards.patch_shape) / (high_3 - low_3)
    extent_3 = torch.from_numpy(extents_N3.astype(np.float32)).mean(0)
    return torch.from_numpy(positions_N3.astype(np.float32)), extent_3


def position_stream(
    positions_N3: Tensor, *, batch_size: int, seed: int, start: int, stop: int, of_rank: slice = slice(None)
) -> Iterator[Tensor]:
    """The positions of the batches that `data.patches.stream` gives for the same arguments."""
    for position in range(start, stop):
        yield positions_N3[batch_indices(len(positions_N3), batch_size, seed, position)[of_rank]]
