"""Scores that measure distances between masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from vesselgan.core.errors import DataError
from vesselgan.metrics.masks import as_masks

# One tree query costs about as much as the distance transform of this many voxels (measured: 2 us against 0.25 us).
VOXELS_PER_QUERY = 8


@dataclass(frozen=True)
class SurfaceDistances:
    """How far truth G and prediction P lie apart, in one unit. S(A->B): see `distances`."""

    bavd: float
    """(S(G->P) + S(P->G)) / (2 |G|), the mean of the next two (Subramaniam 2022, equation 4)."""
    truth_to_predicted: float
    """S(G->P) / |G|: grows with what was missed."""
    predicted_to_truth: float
    """S(P->G) / |G|: grows with what was made up."""
    avd: float
    """(S(G->P) / |G| + S(P->G) / |P|) / 2, the unbalanced average (Aydin 2021)."""
    hd95: float
    """The greater of the two 95th percentiles of the distances from one surface's voxels to the other's."""


def distances(truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float] | None = None) -> SurfaceDistances:
    """All distances between two masks, in voxels; with spacing_mm (one edge length per axis) in millimetres.

    S(A->B) is the sum, over all voxels of A (not its surface's), of the distance to the nearest voxel of B, measured
    with that spacing and not scaled afterwards. A surface's voxels are those with a face towards the background.
    Both masks empty: all 0. One empty: all are the diagonal of the whole array. DataError: see `as_masks`.
    """
    pair = _Pair.of(truth, predicted, spacing_mm)
    if pair.diagonal is not None:
        return SurfaceDistances(*[pair.diagonal] * 5)
    missed, made_up = pair.sums()
    num_truth, num_predicted = pair.num_truth, pair.num_predicted
    return SurfaceDistances(
        bavd=(missed + made_up) / (2 * num_truth),
        truth_to_predicted=missed / num_truth,
        predicted_to_truth=made_up / num_truth,
        avd=(missed / num_truth + made_up / num_predicted) / 2,
        hd95=pair.hd95(),
    )


def balanced_average_hausdorff(
    truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float] | None = None
) -> float:
    """The `bavd` of `distances` alone, in half its time."""
    pair = _Pair.of(truth, predicted, spacing_mm)
    return sum(pair.sums()) / (2 * pair.num_truth) if pair.diagonal is None else pair.diagonal


@dataclass(frozen=True)
class _Pair:
    """Two masks in their tight box, or what stands for a distance where one of them is empty."""

    truth: np.ndarray
    predicted: np.ndarray
    edges: np.ndarray
    num_truth: int
    num_predicted: int
    diagonal: float | None

    @classmethod
    def of(cls, truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float] | None) -> "_Pair":
        truth, predicted = as_masks(truth, predicted)
        edges = np.ones(truth.ndim) if spacing_mm is None else np.asarray(spacing_mm, dtype=float)
        if edges.shape != (truth.ndim,) or not np.all(np.isfinite(edges) & (edges > 0)):
            raise DataError(f"spacing_mm={spacing_mm}: one positive length per axis of an array of {truth.ndim} axes")
        num_truth, num_predicted = int(np.count_nonzero(truth)), int(np.count_nonzero(predicted))
        if num_truth == 0 or num_predicted == 0:
            diagonal = 0.0 if num_truth == num_predicted else float(np.linalg.norm(edges * truth.shape))
            return cls(truth, predicted, edges, num_truth, num_predicted, diagonal)
        box = tight_box(truth | predicted)
        return cls(truth[box], predicted[box], edges, num_truth, num_predicted, None)

    def sums(self) -> tuple[float, float]:
        """S(G->P) and S(P->G). Shared voxels are at distance 0 and are not looked up."""
        return self._sum(self.truth, self.predicted), self._sum(self.predicted, self.truth)

    def _sum(self, source: np.ndarray, target: np.ndarray) -> float:
        # Seen from outside, a mask's nearest voxel is always one of its surface.
        return float(self._to_nearest(_voxels(source & ~target), _surface_voxels(target)).sum())

    def hd95(self) -> float:
        truth, predicted = _surface_voxels(self.truth), _surface_voxels(self.predicted)
        both_ways = self._to_nearest(truth, predicted), self._to_nearest(predicted, truth)
        return max(float(np.percentile(way, 95)) for way in both_ways)

    def _to_nearest(self, points: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The distance from each of the voxels `points` to the nearest of `targets`, both [n, axes]."""
        if len(points) * VOXELS_PER_QUERY > self.truth.size:
            background = np.ones(self.truth.shape, bool)
            background[tuple(targets.T)] = False
            return ndimage.distance_transform_edt(background, sampling=self.edges)[tuple(points.T)]
        return cKDTree(targets * self.edges).query(points * self.edges)[0] if len(points) else np.zeros(0)


def tight_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds the mask, which must not be empty."""
    spans = []
    for axis in range(mask.ndim):
        held = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        spans.append(slice(int(held[0]), int(held[-1]) + 1))
    return tuple(spans)


def _surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Indices [n, axes] of those voxels with a face towards the background, the array's outside included."""
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
