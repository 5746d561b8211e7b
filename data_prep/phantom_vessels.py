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
FLOOR_MM, HALF_WIDTHS_MM = -8.0, (78.0, 96.0)
"""Where branches end: below the slab, and beside the template."""
BALANCE = 0.4
"""Weight of the way to the root beside that of the wire, in trees that span points."""
BEND = 0.15
"""Standard deviation of a spanning branch's middle from the straight line, share of its length."""

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

    All tips advance together, a step at a time. A branch also ends at FLOOR_MM or at top_mm.
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
        alive = (radius >= min_radius) & (position[:, 2] < top_mm) & (position[:, 2] > FLOOR_MM)
        position, direction, radius = position[alive], direction[alive], radius[alive]
        path, to_branch_mm = path[alive], to_branch_mm[alive]
    return concatenate(tubes)


def span(
    rng: np.random.Generator,
    tips: Sequence[Tip],
    depth: Depth,
    *,
    target_depth_mm: float,
    min_radius: float,
    branch_every_mm: float,
    top_mm: float,
) -> Tubes:
    """Trees from the tips that join points scattered at a depth below a surface, a branch's length apart and less.

    Their shape is a minimum spanning tree's that shuns long ways to the root (Cuntz et al., PLoS Comput Biol 2010);
    their radii follow Murray's law, every end of a tip's tree receiving the same flow. Branches end as those of `grow`.
    """
    root_R3 = np.array([tip.position for tip in tips])
    points_P3 = _scattered(rng, depth, target_depth_mm, branch_every_mm / 3, top_mm)
    node_N3 = np.concatenate([root_R3, points_P3])
    parent_N, order_N = spanning_tree(node_N3, len(tips))
    root_N, ends_N = np.arange(len(node_N3)), np.zeros(len(node_N3))
    path_N = np.concatenate([[tip.path_mm for tip in tips], np.zeros(len(points_P3))])
    children_N = order_N[len(tips) :]
    for node in children_N:
        root_N[node] = root_N[parent_N[node]]
        path_N[node] = path_N[parent_N[node]] + np.linalg.norm(node_N3[node] - node_N3[parent_N[node]])
    for node in children_N[::-1]:
        ends_N[node] = max(ends_N[node], 1)
        ends_N[parent_N[node]] += ends_N[node]
    radius_R = np.array([tip.radius for tip in tips])
    radius_N = radius_R[root_N] * (ends_N / np.maximum(ends_N[root_N], 1)) ** (1 / MURRAY_EXPONENT)
    kept = children_N[radius_N[children_N] >= min_radius]
    start, end = node_N3[parent_N[kept]], node_N3[kept]
    length = np.linalg.norm(end - start, axis=1, keepdims=True)
    middle = (start + end) / 2 + BEND * length * rng.normal(0.0, 1.0, start.shape)
    radius, signal = radius_N[kept], flow_signal(path_N[kept], radius_N[kept])
    return concatenate([Tubes(start, middle, radius, signal), Tubes(middle, end, radius, signal)])


def spanning_tree(node_N3: np.ndarray, num_roots: int) -> tuple[np.ndarray, np.ndarray]:
    """Every node's parent (-1: one of the roots, the first nodes) and an order in which parents come first.

    Nodes are joined one by one, each time where the wire and BALANCE times the way to the root are shortest.
    """
    count = len(node_N3)
    parent_N, order_N = np.full(count, -1), np.arange(count)
    cost_N, path_N = np.full(count, np.inf), np.zeros(count)
    is_joined_N = np.zeros(count, bool)
    for i in range(count):
        node = i if i < num_roots else int(cost_N.argmin())
        if node >= num_roots:
            path_N[node] = path_N[parent_N[node]] + np.linalg.norm(node_N3[node] - node_N3[parent_N[node]])
        order_N[i], is_joined_N[node], cost_N[node] = node, True, np.inf
        wire_N = np.linalg.norm(node_N3 - node_N3[node], axis=1)
        offer_N = wire_N + BALANCE * (path_N[node] + wire_N)
        is_better = (offer_N < cost_N) & ~is_joined_N & (np.arange(count) >= num_roots)
        cost_N[is_better], parent_N[is_better] = offer_N[is_better], node
    return parent_N, order_N


def _scattered(
    rng: np.random.Generator, depth: Depth, target_depth_mm: float, apart_mm: float, top_mm: float
) -> np.ndarray:
    """Random points [P, 3] about target_depth_mm below the surface, no two nearer than apart_mm."""
    from scipy.spatial import KDTree

    low, high = [-HALF_WIDTHS_MM[0], -HALF_WIDTHS_MM[1], FLOOR_MM], [*HALF_WIDTHS_MM, top_mm]
    drawn_P3 = rng.uniform(low, high, (60_000, 3))
    drawn_P3 = drawn_P3[np.abs(depth(drawn_P3) - target_depth_mm) < 1.5]
    is_kept = np.ones(len(drawn_P3), bool)
    for i, near in enumerate(KDTree(drawn_P3).query_ball_point(drawn_P3, apart_mm)):
        if is_kept[i]:
            is_kept[[j for j in near if j > i]] = False
    return drawn_P3[is_kept]


TREES = {"steered": grow, "spanning": span}
