"""Scores of a vessel tree's course and connection: centreline Dice and connected parts."""

import numpy as np
from scipy import ndimage

from vesselgan.metrics.masks import as_masks
from vesselgan.metrics.surface import tight_box

TOUCHING = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner are connected."""


def centreline_dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """clDice (Shit 2021): the harmonic mean of the shares of each mask's centreline that lie inside the other mask.

    3D masks. Both empty: 1. One empty: 0. DataError: see `as_masks`.
    """
    truth, predicted = as_masks(truth, predicted)
    if not truth.any() or not predicted.any():
        return 0.0 if truth.any() or predicted.any() else 1.0
    precision, sensitivity = _share(centreline(predicted), truth), _share(centreline(truth), predicted)
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def centreline(mask_XYZ: np.ndarray) -> np.ndarray:
    """The mask thinned to lines one voxel wide (Lee 1994, by scikit-image), bool; every part keeps at least a voxel.

    scikit-image's thinning removes some parts of an even width altogether (scikit-image#3757; a tube of 2 x 2).
    Those are thinned once more, a voxel wider; what is lost even then stays as it is.
    """
    from skimage.morphology import skeletonize

    lines_XYZ = np.zeros(mask_XYZ.shape, bool)
    if not mask_XYZ.any():
        return lines_XYZ
    box = tight_box(mask_XYZ)
    held = np.pad(mask_XYZ[box], 1)
    lines = skeletonize(held, method="lee").astype(bool)
    parts, num_parts = ndimage.label(held, TOUCHING)
    if (lost := _parts_without(lines, parts, num_parts)).any():
        wider = ndimage.binary_dilation(lost, np.ones((2, 2, 2), bool))
        lines |= skeletonize(wider, method="lee").astype(bool) & lost
        lines |= _parts_without(lines, parts, num_parts)
    lines_XYZ[box] = lines[1:-1, 1:-1, 1:-1]
    return lines_XYZ


def _parts_without(lines: np.ndarray, parts: np.ndarray, num_parts: int) -> np.ndarray:
    """The voxels of those parts that hold no voxel of `lines`."""
    is_without = np.ones(num_parts + 1, bool)
    is_without[parts[lines]] = is_without[0] = False
    return is_without[parts]


def count_parts(mask_XYZ: np.ndarray) -> int:
    """Connected parts of a mask, voxels that touch by a corner counted as connected."""
    return int(ndimage.label(mask_XYZ[tight_box(mask_XYZ)], TOUCHING)[1]) if mask_XYZ.any() else 0


def _share(lines_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> float:
    return int(np.count_nonzero(lines_XYZ & mask_XYZ)) / int(np.count_nonzero(lines_XYZ))
