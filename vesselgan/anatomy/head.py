"""A head's vessel label and brain mask on a grid, from a seed: a tree that is connected by construction.

The brain is a union of ellipsoids of an adult's size. The field of view holds the head whatever its size in mm, as the
place that a generator knows is relative to it too; calibres stay true mm.
X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vesselgan.anatomy.growth import grow
from vesselgan.anatomy.tissue import BRAIN, HEAD, OUTSIDE, closed
from vesselgan.anatomy.trunks import Curve, draw_trunks
from vesselgan.core.errors import UsageError

FIELD_OF_VIEW_MM = (152.0, 192.0, 90.0)
"""Of an adult's head in a slab through the circle of Willis."""
MIN_VOXELS, MIN_SHARE = 32, 0.4
"""Of an axis: fewer voxels, or a smaller share of FIELD_OF_VIEW_MM, cannot hold vessels of true calibre apart."""
MAX_EXTENT_MM = 512.0
"""Of an axis: the largest field of view of a scanner."""
THINNEST_MM = 0.36
"""Radius: thinner arteries, and those thinner than a voxel, do not show in time of flight."""
Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Centre and half axes, mm."""
CEREBRUM: tuple[Ellipsoid, ...] = (
    ((0, -2, 36), (63, 80, 50)),
    ((39, 8, -8), (20, 36, 19)),
    ((-39, 8, -8), (20, 36, 19)),
)
"""Hemispheres and the two temporal lobes; then cerebellum and brain stem."""
CEREBELLUM: tuple[Ellipsoid, ...] = (((0, -46, -20), (46, 30, 21)), ((0, -18, -30), (13, 12, 30)))
POINTS_PER_SIDE = {True: 350, False: 90}
"""That pull at branches, above and below the tent."""
CORTEX_MM, DEEP_SHARE = 9.0, 0.05
"""Most points lie this near to the brain's surface, few deeper: so arteries run over the surface."""
MASK_MARGIN_MM, CLEFT_MM = 4.0, 12.0
"""Of the mask around the brain: tools extract it generously, and bridge clefts between lobes that are no wider."""
SCALP_MM = 11.0
"""From the brain to the skin at least: fluid, skull and scalp."""
SKIN: tuple[Ellipsoid, ...] = (
    ((0, -2, 14), (74, 92, 86)),
    ((0, 22, -42), (62, 68, 64)),
    ((0, -24, -52), (60, 62, 62)),
)
"""The vault, of an adult's head breadth and length; the face; the neck."""
CONNECTED = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Head:
    """uint8 [X, Y, Z]."""

    label_XYZ: np.ndarray
    """0 or 1."""
    tissue_XYZ: np.ndarray
    """See `tissue`."""

    @property
    def mask_XYZ(self) -> np.ndarray:
        """Of the brain, 0 or 1."""
        return (self.tissue_XYZ == BRAIN).astype(np.uint8)

    def channels(self, count: int) -> np.ndarray:
        """float32 [count, X, Y, Z] from 0 to 1: the label; the tissue map."""
        return np.stack([self.label_XYZ, self.tissue_XYZ / np.float32(BRAIN)][:count]).astype(np.float32)


def synthetic_head(seed: int, shape: Sequence[int], spacing_mm: Sequence[float]) -> Head:
    """The same bytes for the same arguments. Every connected part of the label holds a carotid or a vertebral artery.

    UsageError: see `check_grid`.
    """
    check_grid(shape, spacing_mm)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    size = rng.uniform(0.96, 1.03)
    brain = {True: _varied(rng, CEREBRUM), False: _varied(rng, CEREBELLUM)}
    trunks = draw_trunks(rng)
    min_radius_mm = max(THINNEST_MM, min(spacing_mm) / 2)
    curves = list(trunks.curves)
    for is_above, points_per_side in POINTS_PER_SIDE.items():
        for side in (1, -1):
            stems = [stem for stem in trunks.stems if (stem.side, stem.is_above) == (side, is_above)]
            points_A3 = _points(rng, brain[is_above], points_per_side, side)
            curves += grow(rng, stems, points_A3, min_radius_mm=min_radius_mm)
    grid = _Grid(shape, spacing_mm, size)
    label_XYZ = _with_inlets(draw(curves, grid), [grid.entry(curve) for curve in trunks.inlets])
    lobes = [*brain[True], *brain[False]]
    mask_XYZ = closed(grid.union(lobes, margin_mm=MASK_MARGIN_MM), spacing_mm, CLEFT_MM)
    head_XYZ = grid.union(lobes, margin_mm=SCALP_MM) | grid.union(_varied(rng, SKIN), margin_mm=0.0)
    head_XYZ = mask_XYZ | closed(head_XYZ, spacing_mm, CLEFT_MM)
    tissue_XYZ = np.select([mask_XYZ, head_XYZ], [BRAIN, HEAD], OUTSIDE)
    return Head(label_XYZ.astype(np.uint8), tissue_XYZ.astype(np.uint8))


def check_grid(shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    """UsageError for a grid that is not 3D, or too coarse, too small or too large for a head."""
    if len(shape) != 3 or len(spacing_mm) != 3 or not all(0.1 <= edge <= 5 for edge in spacing_mm):
        raise UsageError(
            f"shape={list(shape)}, spacing_mm={list(spacing_mm)}: needs three sizes, three edges of 0.1 to 5"
        )
    extent_mm = np.multiply(shape, spacing_mm)
    smallest_mm = MIN_SHARE * np.array(FIELD_OF_VIEW_MM)
    if min(shape) < MIN_VOXELS or (extent_mm < smallest_mm).any():
        smallest = " x ".join(f"{mm:g}" for mm in smallest_mm)
        raise UsageError(
            f"shape={list(shape)} of {'x'.join(f'{edge:g}' for edge in spacing_mm)} mm: a head needs {MIN_VOXELS} "
            f"voxels of an axis or more, and {smallest} mm or more"
        )
    if (extent_mm > MAX_EXTENT_MM).any():
        raise UsageError(
            f"shape={list(shape)} of {'x'.join(f'{edge:g}' for edge in spacing_mm)} mm: {extent_mm.max():g} mm, and a "
            f"head takes {MAX_EXTENT_MM:g} mm of an axis at most; give fewer voxels"
        )


def check_training_volumes(shape: Sequence[int], spacing_mm: Sequence[float], *, can_make_heads: bool) -> None:
    """UsageError, with the way out, unless heads as large as these training volumes can be cut into patches.

    can_make_heads: whether the network makes whole heads of any size, too.
    """
    try:
        check_grid(shape, spacing_mm)
    except UsageError as error:
        remedy = "train on volumes of heads"
        if can_make_heads:
            sizes = (max(MIN_VOXELS, round(mm / edge)) for mm, edge in zip(FIELD_OF_VIEW_MM, spacing_mm, strict=True))
            whole = ",".join(map(str, sizes))
            remedy = f"`vesselgan generate volumes=N shape=[{whole}]` makes whole heads, or {remedy}"
        raise UsageError(
            f"no patches can be made, as the network is given labels, and the training volumes are no head's: {error}; "
            f"{remedy}"
        ) from error


class _Grid:
    """Voxels, and the stretch that fits FIELD_OF_VIEW_MM to their extent."""

    def __init__(self, shape: Sequence[int], spacing_mm: Sequence[float], size: float) -> None:
        self.shape, self.spacing_mm, self.size = tuple(shape), np.array(spacing_mm, float), size
        self.stretch = np.multiply(shape, spacing_mm) / np.array(FIELD_OF_VIEW_MM)

    def to_mm(self, points_P3: np.ndarray) -> np.ndarray:
        """Of the head -> of the grid, from its lower corner."""
        return (points_P3 * self.size + np.array(FIELD_OF_VIEW_MM) / 2) * self.stretch

    def entry(self, curve: Curve) -> np.ndarray:
        """The voxels [0 or 1, 3] of the curve's first point in the grid: its begin may lie below the lowest slice."""
        index_P3 = np.floor(self.to_mm(curve.points_P3) / self.spacing_mm).astype(int)
        return index_P3[((index_P3 >= 0) & (index_P3 < self.shape)).all(1)][:1]

    def level(self, ellipsoid: Ellipsoid) -> np.ndarray:
        """Below 1 inside the ellipsoid, float32 [X, Y, Z]."""
        total_XYZ = np.zeros(self.shape, np.float32)
        for axis, count in enumerate(self.shape):
            mm = (np.arange(count) + 0.5) * self.spacing_mm[axis] / self.stretch[axis] - FIELD_OF_VIEW_MM[axis] / 2
            term = ((mm / self.size - ellipsoid[0][axis]) / ellipsoid[1][axis]) ** 2
            total_XYZ += term.astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
        return total_XYZ

    def union(self, ellipsoids: Sequence[Ellipsoid], *, margin_mm: float) -> np.ndarray:
        """bool [X, Y, Z]: inside one of them, each longer by a margin on all sides."""
        inside_XYZ = np.zeros(self.shape, bool)
        for centre, (a, b, c) in ellipsoids:
            inside_XYZ |= self.level((centre, (a + margin_mm, b + margin_mm, c + margin_mm))) < 1
        return inside_XYZ


def draw(curves: Sequence[Curve], grid: _Grid) -> np.ndarray:
    """bool [X, Y, Z]: voxels whose centre lies in a vessel, and all that a centreline passes: thin ones hold too."""
    label_XYZ = np.zeros(grid.shape, bool)
    for curve in curves:
        points_P3 = grid.to_mm(curve.points_P3)
        for start, end, radius_mm in zip(points_P3[:-1], points_P3[1:], curve.radius_P[1:], strict=True):
            _draw_piece(label_XYZ, start, end, radius_mm, grid.spacing_mm)
    return label_XYZ


def _draw_piece(label_XYZ: np.ndarray, start: np.ndarray, end: np.ndarray, radius_mm: float, edges: np.ndarray) -> None:
    shape, along = np.array(label_XYZ.shape), end - start
    count = 2 + int(2 * np.abs(along / edges).max())
    line_P3 = np.floor((start + np.linspace(0, 1, count)[:, None] * along) / edges).astype(int)
    line_P3 = line_P3[((line_P3 >= 0) & (line_P3 < shape)).all(1)]
    label_XYZ[tuple(line_P3.T)] = True
    low = np.maximum(np.floor((np.minimum(start, end) - radius_mm) / edges - 0.5).astype(int), 0)
    high = np.minimum(np.ceil((np.maximum(start, end) + radius_mm) / edges + 0.5).astype(int), shape)
    if (low >= high).any():
        return
    away = [(np.arange(a, b) + 0.5) * edge - s for a, b, edge, s in zip(low, high, edges, start, strict=True)]
    mesh = np.meshgrid(*away, indexing="ij", sparse=True)
    share = sum(axis * step for axis, step in zip(mesh, along, strict=True)) / max(along @ along, 1e-9)
    share = np.clip(share, 0, 1)
    squared = sum((axis - share * step) ** 2 for axis, step in zip(mesh, along, strict=True))
    label_XYZ[tuple(map(slice, low, high))] |= squared <= radius_mm**2


def _with_inlets(label_XYZ: np.ndarray, inlets: Sequence[np.ndarray]) -> np.ndarray:
    """The connected parts that blood enters: what leaves the grid and comes back is cut off."""
    components_XYZ, _ = ndimage.label(label_XYZ, CONNECTED)
    return np.isin(components_XYZ, np.setdiff1d(components_XYZ[tuple(np.concatenate(inlets).T)], [0]))


def _varied(rng: np.random.Generator, shapes: Sequence[Ellipsoid]) -> list[Ellipsoid]:
    """Axes of another head, symmetric."""
    x, y, z = rng.normal(1.0, 0.03, 3)
    return [(centre, (a * x, b * y, c * z)) for centre, (a, b, c) in shapes]


def _points(rng: np.random.Generator, shapes: Sequence[Ellipsoid], count: int, side: int) -> np.ndarray:
    """Points [count, 3] of one side of the ellipsoids' union, in the field of view, most of them near its surface."""
    box = np.array(FIELD_OF_VIEW_MM) / 2
    found: list[np.ndarray] = []
    while sum(map(len, found)) < count:
        points_P3 = rng.uniform(-box, box, (20 * count, 3))
        points_P3[:, 0] = side * np.abs(points_P3[:, 0])
        depth_P = np.max([_depth_mm(points_P3, shape) for shape in shapes], 0)
        is_chosen = (depth_P > 1) & ((depth_P < CORTEX_MM) | (rng.random(len(points_P3)) < DEEP_SHARE))
        found.append(points_P3[is_chosen])
    return np.concatenate(found)[:count]


def _depth_mm(points_P3: np.ndarray, ellipsoid: Ellipsoid) -> np.ndarray:
    """Below the surface, to first order; positive inside."""
    away_P3 = (points_P3 - ellipsoid[0]) / np.array(ellipsoid[1])
    level_P = np.linalg.norm(away_P3, axis=1)
    return (1 - level_P) * level_P / (np.linalg.norm(away_P3 / np.array(ellipsoid[1]), axis=1) + 1e-6)
