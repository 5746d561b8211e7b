"""Turns and mirrorings of patches: which one a sample gets is a pure function of seed and place in the run."""

# N batch, C channel, X Y Z voxels

import numpy as np
from torch import Tensor

NUM_WORDS = 16  # three mirrorings, and the swap of X and Y that makes a quarter turn of two of them
_MIRROR = {1: 2, 2: 3, 4: 4}  # bit -> dimension of NCXYZ
_SWAP = 8
_STREAM = 0xA06  # sets these draws apart from the sampler's, which start from the same seed


def sample_orientations(batch_size: int, seed: int, position: int) -> np.ndarray:
    """uint8[batch_size], 0 to 15: one word for each sample of global batch `position`, whatever the number of ranks."""
    raw = np.random.Philox(np.random.SeedSequence((seed, position, _STREAM))).random_raw(batch_size)
    return (raw % NUM_WORDS).astype(np.uint8)


def turn(patch_CXYZ: Tensor, word: int) -> Tensor:
    """Image and label alike, mirrored along X, Y or Z (bits 1, 2, 4) after X and Y were exchanged (bit 8).

    Bit 8 together with one of the bits 1 and 2 is a turn by 90 degrees in the axial plane. Patches whose X and Y differ
    in size are not exchanged. Every value comes back, moved.
    """
    _, size_x, size_y, _ = patch_CXYZ.shape
    if word & _SWAP and size_x == size_y:
        patch_CXYZ = patch_CXYZ.transpose(1, 2)
    dims = [dim - 1 for bit, dim in _MIRROR.items() if word & bit]
    return patch_CXYZ.flip(dims) if dims else patch_CXYZ
