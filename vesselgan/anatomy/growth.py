"""Trees that grow from stems into a volume of points, and their radii.

Space colonisation (Runions, Lane and Prusinkiewicz 2007): every point that no branch has reached yet pulls at the
nearest one; a branch grows by a step in the mean direction of what pulls at it, and a point that is near a branch is
served and pulls no more. Radii follow Murray's law (1926), every branch's end receiving the same flow.
"""

from collections.abc import Sequence

import numpy as np

from vesselgan.anatomy.trunks import MURRAY_EXPONENT, Curve, Stem

STEP_MM = 1.5
SERVED_MM = 3.5
"""Distance to a branch from which a point pulls no more."""
WANDER = 0.5
"""Standard deviation of a step's direction: with it branches wind."""
INERTIA = 0.8
MAX_STEPS = 150
"""Of growth; a branch that long, 225 mm, would cross the head."""


def grow(
    rng: np.random.Generator, stems: Sequence[Stem], points_A3: np.ndarray, *, min_radius_mm: float
) -> list[Curve]:
    """The branches of at least this radius that grow from stems to points; each begins on a stem or a branch."""
    position_N3 = np.concatenate([stem.curve.points_P3[2:] for stem in stems])
    stem_N = np.concatenate([np.full(len(stem.curve.points_P3) - 2, i) for i, stem in enumerate(stems)])
    parent_N = np.full(len(position_N3), -1)
    heading_N3 = np.zeros_like(position_N3)
    distance_A = np.full(len(points_A3), np.inf)
    nearest_A = np.zeros(len(points_A3), int)
    first = 0
    for _ in range(MAX_STEPS):
        _update_nearest(points_A3, position_N3, first, distance_A, nearest_A)
        is_left = distance_A > SERVED_MM
        points_A3, distance_A, nearest_A = points_A3[is_left], distance_A[is_left], nearest_A[is_left]
        if not len(points_A3):
            break
        first = len(position_N3)
        growing_G, which_A = np.unique(nearest_A, return_inverse=True)
        pull_A3 = _unit(points_A3 - position_N3[nearest_A])
        pull_G3 = np.stack([np.bincount(which_A, pull_A3[:, k], len(growing_G)) for k in range(3)], 1)
        wander_G3 = rng.normal(0.0, WANDER, pull_G3.shape)
        direction_G3 = _unit(_unit(pull_G3) + INERTIA * heading_N3[growing_G] + wander_G3)
        position_N3 = np.concatenate([position_N3, position_N3[growing_G] + STEP_MM * direction_G3])
        heading_N3 = np.concatenate([heading_N3, direction_G3])
        parent_N = np.concatenate([parent_N, growing_G])
        stem_N = np.concatenate([stem_N, stem_N[growing_G]])
    radius_N = murray_radii(parent_N, stem_N, np.array([stem.radius_mm for stem in stems]))
    return _branches(position_N3, parent_N, radius_N, min_radius_mm)


def murray_radii(parent_N: np.ndarray, stem_N: np.ndarray, stem_radius_S: np.ndarray) -> np.ndarray:
    """The radius of every node: r^3 is its share of the ends that its stem feeds. Parents stand before children; -1:
    a node of the stem itself."""
    ends_N = np.ones(len(parent_N))
    ends_N[parent_N[parent_N >= 0]] = 0
    ends_N[parent_N < 0] = 0
    for node in range(len(parent_N) - 1, -1, -1):
        if parent_N[node] >= 0:
            ends_N[parent_N[node]] += ends_N[node]
    of_stem_S = np.bincount(stem_N[parent_N < 0], ends_N[parent_N < 0], len(stem_radius_S))
    return stem_radius_S[stem_N] * (ends_N / np.maximum(of_stem_S[stem_N], 1)) ** (1 / MURRAY_EXPONENT)


def _update_nearest(
    points_A3: np.ndarray, position_N3: np.ndarray, first: int, distance_A: np.ndarray, nearest_A: np.ndarray
) -> None:
    """Takes the nodes from `first` on into account; in place."""
    from scipy.spatial import KDTree

    found_A, index_A = KDTree(position_N3[first:]).query(points_A3)
    is_nearer = found_A < distance_A
    distance_A[is_nearer], nearest_A[is_nearer] = found_A[is_nearer], first + index_A[is_nearer]


def _branches(position_N3: np.ndarray, parent_N: np.ndarray, radius_N: np.ndarray, min_radius_mm: float) -> list[Curve]:
    """Pieces from a node to its parent, of those that are wide enough; what hangs on a thin node is thinner still."""
    kept = np.flatnonzero((parent_N >= 0) & (radius_N >= min_radius_mm))
    return [
        Curve(position_N3[[parent_N[node], node]], np.array([max(radius_N[node], min_radius_mm)] * 2)) for node in kept
    ]


def _unit(vectors_N3: np.ndarray) -> np.ndarray:
    return vectors_N3 / np.maximum(np.linalg.norm(vectors_N3, axis=1, keepdims=True), 1e-6)
