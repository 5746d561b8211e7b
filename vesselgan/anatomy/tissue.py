"""The tissue map of a head: outside 0, head 1, brain 2; what a generator is given of anatomy beside the vessel label.

Of a real head it is made from image and brain mask, of a synthetic one (`head`) from the same shapes as its mask.
X Y Z voxels.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

OUTSIDE, HEAD, BRAIN = 0, 1, 2
SMOOTHING_VOXELS = 1.0
THRESHOLD_SHARE = 0.6
"""Of Otsu's threshold, which parts brain from air and skull: where coils receive little, scalp is darker than brain."""
GAP_MM = 12.0
"""Gaps in the scalp that are no wider are closed."""
NUM_BINS = 256


def tissue_map(image_XYZ: np.ndarray, mask_XYZ: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """uint8 [X, Y, Z] of an image of any scale and its brain mask {0, 1}."""
    tissue_XYZ = head_mask(image_XYZ, spacing_mm).astype(np.uint8)
    tissue_XYZ[mask_XYZ > 0] = BRAIN
    return tissue_XYZ


def head_mask(image_XYZ: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """bool [X, Y, Z]: the largest bright part, its gaps closed and the holes of every axial slice filled.

    So the dark skull is in, between scalp and brain; air in the nose as well.
    """
    smooth_XYZ = ndimage.gaussian_filter(image_XYZ.astype(np.float32), SMOOTHING_VOXELS)
    largest = np.quantile(smooth_XYZ, 0.99)
    if not largest > smooth_XYZ.min():
        return np.zeros(image_XYZ.shape, bool)
    is_head_XYZ = smooth_XYZ > THRESHOLD_SHARE * _otsu(np.minimum(smooth_XYZ, largest))
    parts_XYZ, count = ndimage.label(closed(is_head_XYZ, spacing_mm, GAP_MM))
    if count > 1:
        parts_XYZ = parts_XYZ == 1 + np.argmax(np.bincount(parts_XYZ.ravel())[1:])
    return np.stack([ndimage.binary_fill_holes(slice_XY) for slice_XY in np.moveaxis(parts_XYZ, 2, 0)], 2)


def closed(mask_XYZ: np.ndarray, spacing_mm: Sequence[float], gap_mm: float) -> np.ndarray:
    """bool: morphological closing of gaps up to a width."""
    steps = max(1, round(gap_mm / 2 / float(np.mean(spacing_mm))))
    closed_XYZ = ndimage.binary_closing(np.pad(mask_XYZ, steps), iterations=steps)
    return closed_XYZ[steps:-steps, steps:-steps, steps:-steps]


def _otsu(values: np.ndarray) -> float:
    """The threshold of largest variance between what is below and above it (Otsu 1979)."""
    counts, edges = np.histogram(values, NUM_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    above, total = counts.sum() - below, float(np.sum(counts * centres))
    between = below * above * (sums / np.maximum(below, 1) - (total - sums) / np.maximum(above, 1)) ** 2
    return float(centres[:-1][np.argmax(between)])
