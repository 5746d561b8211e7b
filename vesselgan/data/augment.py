"""Orientations of patches: which one a sample gets is a pure function of seed and position in the run."""

# N batch, C channel, X Y Z voxels

import numpy as np
from torch import Tensor

NUM_ORIENTATIONS = 16  # three flips, and the exchange of X and Y that makes a quarter turn of two of them
_FLIPS = {1: 2, 2: 3, 4: 4}  # bit -> dimension of NCXYZ
_EXCHANGE = 8
_STREAM = 0xA06  # separates these draws from the sampler's, which have the same seed


def sample_orientations(batch_size: int, seed: int, position: int) -> np.ndarray:
    """uint8[batch_size], 0 to 15: one orientation per sample of global batch `position`, on any number of ranks."""
    raw = np.random.Philox(np.random.SeedSequence((seed, position, _STREAM))).random_raw(batch_size)
    return (raw % NUM_ORIENTATIONS).astype(np.uint8)


def flip_rotate(patch_CXYZ: Tensor, orientation: int) -> Tensor:
    """Image and label alike, flipped along X, Y or Z (bits 1, 2, 4) after X and Y are exchanged (bit 8).

    Bit 8 with one of the bits 1 and 2 is a rotation by 90 degrees in the axial plane. Patches whose X and Y differ in
    size are not exchanged. Moves values, changes none.
    """
    _, size_x, size_y, _ = patch_CXYZ.shape
    if orientation & _EXCHANGE and size_x == size_y:
        patch_CXYZ = patch_CXYZ.transpose(1, 2)
    dims = [dim - 1 for bit, dim in _FLIPS.items() if orientation & bit]
    return patch_CXYZ.flip(dims) if dims else patch_CXYZ
