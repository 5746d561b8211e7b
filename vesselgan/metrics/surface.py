"""Distances between masks: (balanced) average Hausdorff distance and HD95."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from vesselgan.metrics.masks import as_masks, as_spacing

# One tree query costs about as much as the distance transform of this many voxels (measured: 2 us against 0.25 us).
VOXELS_PER_QUERY = 8


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between truth G and prediction P, in one unit. S(A->B): see `distances`."""

    bavd: float
    """(S(G->P) + S(P->G)) / (2 |G|), the mean of the next two fields (Subramaniam 2022, equation 4)."""
    truth_to_predicted: float
    """S(G->P) / |G|: grows with false negatives."""
    predicted_to_truth: float
    """S(P->G) / |G|: grows with false positives."""
    avd: float
    """(S(G->P) / |G| + S(P->G) / |P|) / 2, the unbalanced average (Aydin 2021)."""
    hd95: float
    """The larger 95th percentile of the distances from the voxels of one surface to the other, of both directions."""


def distances(truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float] | None = None) -> SurfaceDistances:
    """All distances between two masks, in voxels; with spacing_mm (one edge length per axis) in millimetres.

    S(A->B) is the sum over all voxels of A (not only its surface) of the distance to the nearest voxel of B. Surface
    voxels have a face towards the background. Both masks empty: all 0. One empty: all are the diagonal of the whole
    array. DataError: see `as_masks`.
    """
    pair = _Pair.of(truth, predicted, spacing_mm)
    if pair.diagonal is not None:
        return SurfaceDistances(*[pair.diagonal] * 5)
    to_predicted, to_truth = pair.sums()
    num_truth, num_predicted = pair.num_truth, pair.num_predicted
    return SurfaceDistances(
        bavd=(to_predicted + to_truth) / (2 * num_truth),
        truth_to_predicted=to_predicted / num_truth,
        predicted_to_truth=to_truth / num_truth,
        avd=(to_predicted / num_truth + to_truth / num_predicted) / 2,
        hd95=pair.hd95(),
    )


def balanced_average_hausdorff(
    truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float] | None = None
) -> float:
    """The `bavd` of `distances` alone, in half the time."""
    pair = _Pair.of(truth, predicted, spacing_mm)
    return sum(pair.sums()) / (2 * pair.num_truth) if pair.diagonal is None else pair.diagonal


@dataclass(frozen=True)
class _Pair:
    """Two masks cropped to their bounding box, or the diagonal that replaces all distances if one is empty."""

    truth: np.ndarray
    predicted: np.ndarray
    spacing: np.ndarray
    num_truth: int
    num_predicted: int
    diagonal: float | None

    @classmethod
    def of(cls, truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float] | None) -> "_Pair":
        truth, predicted = as_masks(truth, predicted)
        spacing = np.ones(truth.ndim) if spacing_mm is None else as_spacing(spacing_mm, truth.ndim)
        num_truth, num_predicted = int(np.count_nonzero(truth)), int(np.count_nonzero(predicted))
        if num_truth == 0 or num_predicted == 0:
            diagonal = 0.0 if num_truth == num_predicted else float(np.linalg.norm(spacing * truth.shape))
            return cls(truth, predicted, spacing, num_truth, num_predicted, diagonal)
        box = bounding_box(truth | predicted)
        return cls(truth[box], predicted[box], spacing, num_truth, num_predicted, None)

    def sums(self) -> tuple[float, float]:
        """S(G->P) and S(P->G). Common voxels have distance 0 and are skipped."""
        return self._sum(self.truth, self.predicted), self._sum(self.predicted, self.truth)

    def _sum(self, source: np.ndarray, target: np.ndarray) -> float:
        # From outside, the nearest voxel of a mask is always on its surface.
        return float(self._to_nearest(_voxels(source & ~target), _surface_voxels(target)).sum())

    def hd95(self) -> float:
        truth, predicted = _surface_voxels(self.truth), _surface_voxels(self.predicted)
        directions = self._to_nearest(truth, predicted), self._to_nearest(predicted, truth)
        return max(float(np.percentile(distance, 95)) for distance in directions)

    def _to_nearest(self, points: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The distance from each of the voxels `points` to the nearest of `targets`, both [n, axes]."""
        if len(points) * VOXELS_PER_QUERY > self.truth.size:
            background = np.ones(self.truth.shape, bool)
            background[tuple(targets.T)] = False
            return ndimage.distance_transform_edt(background, sampling=self.spacing)[tuple(points.T)]
        return cKDTree(targets * self.spacing).query(points * self.spacing)[0] if len(points) else np.zeros(0)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The bounding box of a mask that is not empty."""
    spans = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        spans.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(spans)


def _surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Indices [n, axes] of those voxels with a face towards the background, the array's outside included."""
    padded = np.pad(mask, 1)
    flat, values = np.flatnonzero(padded), padded.ravel()
    is_inner = np.ones(flat.size, dtype=bool)
    for axis in range(padded.ndim):
        step = math.prod(padded.shape[axis + 1 :])  # of `values`, which is in C order whatever the mask's own
        is_inner &= values[flat - step] & values[flat + step]
    return np.stack(np.unravel_index(flat[~is_inner], padded.shape), axis=1) - 1


def _voxels(mask: np.ndarray) -> np.ndarray:
    """Indices [n, axes] of the mask's voxels (four times as fast as argwhere on a whole volume)."""
    return np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), axis=1)
