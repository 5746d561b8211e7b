"""Centreline Dice and connected components of vessel masks."""

import numpy as np
from scipy import ndimage

from vesselgan.metrics.masks import as_array, as_mask, as_masks
from vesselgan.metrics.surface import bounding_box

TOUCHING = np.ones((3, 3, 3), bool)
"""26-connectivity: voxels that share a face, an edge or a corner are connected."""


def centreline_dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """clDice (Shit 2021): harmonic mean of the fractions of each mask's centreline inside the other mask.

    3D masks. Both empty: 1. One empty: 0. DataError: see `as_masks`.
    """
    truth, predicted = as_masks(as_array(truth, "truth", ndim=3), predicted)
    if not truth.any() or not predicted.any():
        return 0.0 if truth.any() or predicted.any() else 1.0
    precision, sensitivity = _fraction(centreline(predicted), truth), _fraction(centreline(truth), predicted)
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def centreline(mask_XYZ: np.ndarray) -> np.ndarray:
    """The mask thinned to lines one voxel wide (Lee 1994, by scikit-image), bool; every component keeps a voxel.

    scikit-image's thinning erases some components of an even width, such as a 2x2 tube (scikit-image#3757). Those are
    dilated by a voxel and thinned again; a component that is still erased stays as it is.
    """
    from skimage.morphology import skeletonize

    mask_XYZ = as_mask(mask_XYZ, "mask", ndim=3)
    lines_XYZ = np.zeros(mask_XYZ.shape, bool)
    if not mask_XYZ.any():
        return lines_XYZ
    box = bounding_box(mask_XYZ)
    mask = np.pad(mask_XYZ[box], 1)
    lines = skeletonize(mask, method="lee").astype(bool)
    components, num_components = ndimage.label(mask, TOUCHING)
    if (erased := _components_without(lines, components, num_components)).any():
        dilated = ndimage.binary_dilation(erased, np.ones((2, 2, 2), bool))
        lines |= skeletonize(dilated, method="lee").astype(bool) & erased
        lines |= _components_without(lines, components, num_components)
    lines_XYZ[box] = lines[1:-1, 1:-1, 1:-1]
    return lines_XYZ


def _components_without(lines: np.ndarray, components: np.ndarray, num_components: int) -> np.ndarray:
    """The voxels of the components that contain no voxel of `lines`."""
    is_without = np.ones(num_components + 1, bool)
    is_without[components[lines]] = is_without[0] = False
    return is_without[components]


def count_components(mask_XYZ: np.ndarray) -> int:
    """Number of connected components of a mask (26-connectivity)."""
    mask_XYZ = as_mask(mask_XYZ, "mask", ndim=3)
    return int(ndimage.label(mask_XYZ[bounding_box(mask_XYZ)], TOUCHING)[1]) if mask_XYZ.any() else 0


def _fraction(lines_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> float:
    return int(np.count_nonzero(lines_XYZ & mask_XYZ)) / int(np.count_nonzero(lines_XYZ))
