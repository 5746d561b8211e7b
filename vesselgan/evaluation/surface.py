"""Scores that measure distances between masks."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from vesselgan.errors import DataError
from vesselgan.evaluation.masks import as_masks

# One tree query costs about as much as the distance transform of this many voxels (measured: 2 us against 0.25 us).
VOXELS_PER_QUERY = 8


def balanced_average_hausdorff(
    truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float] | None = None
) -> float:
    """(S(G->P) + S(P->G)) / (2 |G|) (Subramaniam 2022, equation 4): over all voxels of the masks, not their surfaces.

    S(A->B) is the sum, over the voxels of A, of the distance to the nearest voxel of B. In voxels; with spacing_mm
    (one edge length per axis) in millimetres, measured with that spacing and not scaled afterwards.
    Both masks empty: 0. One empty: the diagonal of the whole array, in the unit asked. DataError: see `as_masks`.
    """
    truth, predicted = as_masks(truth, predicted)
    edges = np.ones(truth.ndim) if spacing_mm is None else np.asarray(spacing_mm, dtype=float)
    if edges.shape != (truth.ndim,) or not np.all(np.isfinite(edges) & (edges > 0)):
        raise DataError(f"spacing_mm={spacing_mm}: one positive length per axis of an array of {truth.ndim} axes")
    num_truth, num_predicted = int(np.count_nonzero(truth)), int(np.count_nonzero(predicted))
    if num_truth == 0 or num_predicted == 0:
        return 0.0 if num_truth == num_predicted else float(np.linalg.norm(edges * truth.shape))
    box = _tight_box(truth | predicted)
    truth, predicted = truth[box], predicted[box]
    total = _directed_sum(truth, predicted, edges) + _directed_sum(predicted, truth, edges)
    return total / (2 * num_truth)


def _directed_sum(source: np.ndarray, target: np.ndarray, edges: np.ndarray) -> float:
    """S(source->target). Shared voxels are at distance 0 and are not looked up."""
    outside = source & ~target
    num_outside = int(np.count_nonzero(outside))
    if num_outside * VOXELS_PER_QUERY > outside.size:
        return float(ndimage.distance_transform_edt(~target, sampling=edges)[outside].sum())
    if num_outside == 0:
        return 0.0
    tree = cKDTree(_rim_voxels(target) * edges)
    return float(tree.query(_voxels(outside) * edges)[0].sum())


def _rim_voxels(mask: np.ndarray) -> np.ndarray:
    """Those voxels with a face towards the background: seen from outside, the nearest voxel is always one of them."""
    padded = np.pad(mask, 1)
    flat = np.flatnonzero(padded)
    steps = [stride // padded.itemsize for stride in padded.strides]
    values = padded.ravel()
    inner = np.ones(flat.size, dtype=bool)
    for step in steps:
        inner &= values[flat - step] & values[flat + step]
    return np.stack(np.unravel_index(flat[~inner], padded.shape), axis=1) - 1


def _voxels(mask: np.ndarray) -> np.ndarray:
    """Indices [n, axes] of the mask's voxels (four times as fast as argwhere on a whole volume)."""
    return np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), axis=1)


def _tight_box(mask: np.ndarray) -> tuple[slice, ...]:
    spans = []
    for axis in range(mask.ndim):
        held = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        spans.append(slice(int(held[0]), int(held[-1]) + 1))
    return tuple(spans)
