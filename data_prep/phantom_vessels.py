"""Vessels of the phantom as chains of straight pieces: trunks through given points, and trees that grow on a surface.

Positions are the template's mm (see data_prep.phantom_anatomy), radii the volume's mm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MURRAY_EXPONENT = 2.7
INFLOW_LENGTH_MM = 210.0
"""Path after which saturation has taken all but 1/e of the inflow enhancement."""
STEP_MM = 2.0

Depth = Callable[[np.ndarray], np.ndarray]
"""Points [N, 3] -> depth below a surface in mm [N], positive inside."""


@dataclass(frozen=True)
class Tubes:
    """Straight pieces of vessel, S of them; `signal` is the enhancement as a share of fresh blood's."""

    start_S3: np.ndarray
    end_S3: np.ndarray
    radius_S: np.ndarray
    signal_S: np.ndarray


@dataclass(frozen=True)
class Tip:
    """The growing end of a tree: position, direction, radius, and the path of the blood so far."""

    position: np.ndarray
    direction: np.ndarray
    radius: float
    path_mm: float


def concatenate(tubes: Sequence[Tubes]) -> Tubes:
    return Tubes(
        np.concatenate([t.start_S3 for t in tubes]),
        np.concatenate([t.end_S3 for t in tubes]),
        np.concatenate([t.radius_S for t in tubes]),
        np.concatenate([t.signal_S for t in tubes]),
    )


def flow_signal(path_mm: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Share of fresh blood's enhancement after a path (inflow saturates) in a calibre (thin vessels flow slowly)."""
    return np.exp(-path_mm / INFLOW_LENGTH_MM) * np.minimum(1.0, (radius / 1.3)) ** 0.6


def trunk(
    rng: np.random.Generator,
    nodes: Sequence[Sequence[float]],
    radii: tuple[float, float],
    *,
    path_mm: float,
    jitter_mm: float,
) -> tuple[Tubes, Tip]:
    """A smooth tube through jittered nodes, its radius going linearly from the first to the second value."""
    from scipy.interpolate import make_interp_spline

    nodes_K3 = np.asarray(nodes, float)
    nodes_K3[1:-1] += rng.normal(0.0, jitter_mm, nodes_K3[1:-1].shape)
    chord_K = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(nodes_K3, axis=0), axis=1))])
    curve = make_interp_spline(chord_K, nodes_K3, k=min(3, len(nodes_K3) - 1))
    count = max(3, int(chord_K[-1] / STEP_MM) + 1)
    points_P3 = curve(np.linspace(0.0, chord_K[-1], count))
    step_S = np.linalg.norm(np.diff(points_P3, axis=0), axis=1)
    path_S = path_mm + np.cumsum(step_S)
    radius_S = np.linspace(radii[0], radii[1], count - 1)
    direction = points_P3[-1] - points_P3[-2]
    tubes = Tubes(points_P3[:-1], points_P3[1:], radius_S, flow_signal(path_S, radius_S))
    return tubes, Tip(points_P3[-1], direction / np.linalg.norm(direction), radii[1], float(path_S[-1]))


def murray(rng: np.random.Generator, radius_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two daughters' radii of each parent: r^2.7 = r1^2.7 + r2^2.7 (Murray's law), the second the smaller."""
    share_N = rng.uniform(0.5, 0.72, radius_N.shape)
    return radius_N * share_N ** (1 / MURRAY_EXPONENT), radius_N * (1 - share_N) ** (1 / MURRAY_EXPONENT)


def _gradient(depth: Depth, points_N3: np.ndarray) -> np.ndarray:
    """Unit vectors into the depth."""
    shifts = np.eye(3)[:, None, :] * 1.5
    ahead = depth((points_N3[None] + shifts).reshape(-1, 3)).reshape(3, -1)
    behind = depth((points_N3[None] - shifts).reshape(-1, 3)).reshape(3, -1)
    slope_N3 = (ahead - behind).T
    return slope_N3 / np.maximum(np.linalg.norm(slope_N3, axis=1, keepdims=True), 1e-6)


def _unit(vectors_N3: np.ndarray) -> np.ndarray:
    return vectors_N3 / np.maximum(np.linalg.norm(vectors_N3, axis=1, keepdims=True), 1e-6)


def grow(
    rng: np.random.Generator,
    tips: Sequence[Tip],
    depth: Depth,
    *,
    target_depth_mm: float,
    min_radius: float,
    branch_every_mm: float,
    top_mm: float,
) -> Tubes:
    """Trees from the tips, steered along a surface at a depth, branching by Murray's law down to min_radius.

    All tips advance together, a step at a time. A branch also ends 8 mm below the slab or at top_mm.
    """
    position = np.array([tip.position for tip in tips])
    direction = np.array([tip.direction for tip in tips])
    radius = np.array([tip.radius for tip in tips])
    path = np.array([tip.path_mm for tip in tips])
    to_branch_mm = branch_every_mm * rng.uniform(0.2, 1.0, len(tips))
    tubes = []
    while len(radius):
        inward = _gradient(depth, position)
        # Deep below the surface a vessel turns outwards; at the target depth it runs along the surface.
        too_deep = np.clip((depth(position) - target_depth_mm) / 7.0, -0.8, 0.4)
        direction = _unit(direction + rng.normal(0.0, 0.2, direction.shape) - too_deep[:, None] * inward)
        next_position = position + STEP_MM * direction
        path = path + STEP_MM
        tubes.append(Tubes(position, next_position, radius, flow_signal(path, radius)))
        position, radius, to_branch_mm = next_position, radius * 0.995, to_branch_mm - STEP_MM
        splits = to_branch_mm <= 0
        if splits.any():
            first, second = murray(rng, radius[splits])
            across = _unit(np.cross(inward[splits], direction[splits]))
            angle = rng.uniform(0.3, 0.7, (splits.sum(), 1)) * rng.choice([-1.0, 1.0], (splits.sum(), 1))
            position = np.concatenate([position, position[splits]])
            path = np.concatenate([path, path[splits]])
            direction = np.concatenate([direction, _unit(direction[splits] + 1.6 * angle * across)])
            direction[: len(splits)][splits] = _unit(direction[: len(splits)][splits] - 0.7 * angle * across)
            radius = np.concatenate([radius, second])
            radius[: len(splits)][splits] = first
            to_branch_mm = np.concatenate([to_branch_mm, np.zeros(splits.sum())])
            due = to_branch_mm <= 0
            to_branch_mm[due] = branch_every_mm * rng.uniform(0.6, 1.4, due.sum())
        alive = (radius >= min_radius) & (position[:, 2] < top_mm) & (position[:, 2] > -8.0)
        position, direction, radius = position[alive], direction[alive], radius[alive]
        path, to_branch_mm = path[alive], to_branch_mm[alive]
    return concatenate(tubes)
