"""A seeded full-head time-of-flight angiogram: image, vessel label and brain mask of one subject.

Tissue intensities are shares of the brain's; arteries reach about four times brain where blood is fresh. Scalp
arteries and fat as bright as vessels, venous sinuses, marrow and choroid plexus inside the mask, faint distal branches
and a bias field keep a global threshold from segmenting it.

Positions are the template's mm (data_prep.phantom_anatomy); a volume's field of view stretches the template to fit, so
a small field of view is a small head. Calibres are true mm, an adult's whatever the head's size: the demo's vessels
span enough of its large voxels to be learnt, at about twice the paper's share of the brain.
"""

import functools
from dataclasses import dataclass

import numpy as np

from data_prep import phantom_anatomy as anatomy
from data_prep.phantom_anatomy import Calibre, depth_below
from data_prep.phantom_vessels import Tubes

PHANTOM_VERSION = 1
"""Rises with every change that changes a voxel, so that one version makes a whole cohort."""
BRAIN_COUNTS = 180.0
"""int16 counts of brain tissue."""
WARP_MM = 2.0
"""Standard deviation of a subject's deviation from the template, per axis."""
MASK_MARGIN_MM = 3.0
"""Distance of the brain mask from the brain's hull (template mm): generous, as the paper's brain extraction."""
NUM_PLANES = 8
"""Sagittal planes painted at once: few enough to stay in the cache."""
FAR_MM = 1e3


@dataclass(frozen=True)
class Scanner:
    """What differs between scanners, beside the grid."""

    slab_mm: float = 30.0
    """Height of one of the overlapping slabs that the scan is made of (template mm)."""
    bias: float = 0.14
    """Standard deviation of the logarithm of the bias field."""
    noise: tuple[float, float] = (0.045, 0.065)
    """Range of a subject's noise (standard deviation, share of brain)."""
    point_spread_voxels: float = 0.5
    """Standard deviation of the point spread."""


@dataclass(frozen=True)
class Grid:
    """The volume's voxels, and the stretch between template mm and volume mm per axis."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def stretch(self) -> np.ndarray:
        return np.asarray(self.shape) * np.asarray(self.spacing_mm) / np.asarray(anatomy.TEMPLATE_MM)

    @property
    def corner_mm(self) -> np.ndarray:
        """Template position of the volume's lower corner."""
        return np.array([-anatomy.TEMPLATE_MM[0] / 2, -anatomy.TEMPLATE_MM[1] / 2, 0.0])

    def axes_mm(self) -> list[np.ndarray]:
        """Template coordinates of the voxel centres along each axis, float32."""
        step = np.asarray(self.spacing_mm) / self.stretch
        return [
            ((np.arange(n) + 0.5) * step[i] + self.corner_mm[i]).astype(np.float32) for i, n in enumerate(self.shape)
        ]


class Field:
    """A smooth, about standard normal random field: a cubic B-spline, the same on a grid and at points."""

    def __init__(self, rng: np.random.Generator, node_mm: float) -> None:
        self.node_mm = node_mm
        shape = [int(np.ceil(length / node_mm)) + 6 for length in anatomy.TEMPLATE_MM]
        # A cubic B-spline averages its nodes down to a standard deviation of 0.33; the factor restores 1.
        self.nodes = 3.0 * rng.standard_normal(shape, dtype=np.float32)

    def _position(self, axis: int, coordinate_mm: np.ndarray) -> np.ndarray:
        low = 0.0 if axis == 2 else -anatomy.TEMPLATE_MM[axis] / 2
        return (coordinate_mm - low) / self.node_mm + 2.0

    def on_grid(self, axes_mm: list[np.ndarray]) -> np.ndarray:
        values = self.nodes
        for axis, coordinate_mm in enumerate(axes_mm):
            values = _spline_along(values, axis, self._position(axis, coordinate_mm))
        return values

    def at(self, points_N3: np.ndarray) -> np.ndarray:
        from scipy.ndimage import map_coordinates

        positions = [self._position(axis, points_N3[:, axis]) for axis in range(3)]
        return map_coordinates(self.nodes, positions, order=3, prefilter=False, mode="nearest")


def _spline_along(nodes: np.ndarray, axis: int, position_P: np.ndarray) -> np.ndarray:
    """Cubic B-spline along one axis at fractional node positions."""
    base_P = np.floor(position_P).astype(int)
    t = (position_P - base_P).astype(np.float32)
    weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    shape = [1, 1, 1]
    shape[axis] = -1
    terms = (np.take(nodes, base_P + i - 1, axis=axis) * weight_P.reshape(shape) for i, weight_P in enumerate(weights))
    return functools.reduce(lambda total, term: np.add(total, term, out=total), terms)


def draw_tubes(tubes: Tubes, grid: Grid, *, margin_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to the nearest lumen in mm (negative inside, FAR_MM beyond the margin) and that tube's signal.

    Tube positions in template mm of the warped volume, radii in volume mm.
    """
    distance = np.full(grid.shape, FAR_MM, np.float32)
    signal = np.zeros(grid.shape, np.float32)
    spacing = np.asarray(grid.spacing_mm)
    start_S3 = (tubes.start_S3 - grid.corner_mm) * grid.stretch
    end_S3 = (tubes.end_S3 - grid.corner_mm) * grid.stretch
    reach_S1 = tubes.radius_S[:, None] + margin_mm
    low_S3 = np.maximum(np.floor((np.minimum(start_S3, end_S3) - reach_S1) / spacing - 0.5), 0).astype(int)
    high_S3 = np.minimum(np.ceil((np.maximum(start_S3, end_S3) + reach_S1) / spacing + 0.5), grid.shape).astype(int)
    centres = [((np.arange(n) + 0.5) * spacing[i]) for i, n in enumerate(grid.shape)]
    for i in np.flatnonzero((low_S3 < high_S3).all(axis=1)):
        window = tuple(slice(a, b) for a, b in zip(low_S3[i], high_S3[i], strict=True))
        mesh = np.ix_(*(axis[part] for axis, part in zip(centres, window, strict=True)))
        away = [axis - start_S3[i, k] for k, axis in enumerate(mesh)]
        along = end_S3[i] - start_S3[i]
        share = np.clip((away[0] * along[0] + away[1] * along[1] + away[2] * along[2]) / max(along @ along, 1e-9), 0, 1)
        tube_distance = np.sqrt(sum((away[k] - share * along[k]) ** 2 for k in range(3))) - tubes.radius_S[i]
        is_nearer = tube_distance < distance[window]
        distance[window][is_nearer] = tube_distance[is_nearer]
        signal[window][is_nearer] = tubes.signal_S[i]
    return distance, signal


def _blend(image: np.ndarray, value: np.ndarray | float, depth_mm: np.ndarray, edge_mm: float) -> None:
    """Paint `value` where depth is positive, partial at the edge; in place."""
    image += (value - image) * np.clip(depth_mm / edge_mm + 0.5, 0, 1)


class Head:
    """One subject's tissues: smooth random fields drawn once, painted slab by slab."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.size = float(rng.uniform(0.97, 1.03))
        self.warp = [Field(rng, 40.0) for _ in range(3)]
        self.texture, self.fat, self.planes = Field(rng, 5.0), Field(rng, 30.0), Field(rng, 9.0)
        self.folds, self.bias = Field(rng, 8.0), Field(rng, 60.0)
        # Bright ellipsoids that are no vessels: choroid plexus, pineal, and a few blobs in the brain (old blood, fat).
        centres = [(s * (14 + 7 * t), -14 - 20 * t, 76 - 7 * t) for s in (1, -1) for t in (0.0, 1.0)]
        centres += [(0, -38, 47), *(tuple(rng.normal((0, -5, 62), (24, 30, 14))) for _ in range(rng.integers(3, 7)))]
        self.blobs = [((centre, tuple(rng.uniform(2.0, 4.5, 3))), rng.uniform(1.4, 2.4)) for centre in centres]

    def to_template(self, axes_mm: list[np.ndarray]) -> list[np.ndarray]:
        """Template coordinates of a grid's points: x, y, z."""
        mesh = np.meshgrid(*axes_mm, indexing="ij", sparse=True)
        return [mesh[k] / self.size + WARP_MM * field.on_grid(axes_mm) for k, field in enumerate(self.warp)]

    def from_template(self, points_N3: np.ndarray) -> np.ndarray:
        """Volume positions of template points: `to_template` inverted by iteration (the warp is small and smooth)."""
        position = points_N3 * self.size
        for _ in range(4):
            position = (points_N3 - WARP_MM * np.stack([field.at(position) for field in self.warp], axis=1)) * self.size
        return position

    def paint(self, axes_mm: list[np.ndarray], edge_mm: float) -> tuple[np.ndarray, np.ndarray]:
        """Tissue image (shares of brain) and the depth below the cranial cavity's surface in mm, on a grid."""
        template = self.to_template(axes_mm)
        texture = self.texture.on_grid(axes_mm)
        outside = depth_below(anatomy.HEAD, *template)
        lobes = anatomy.depths(anatomy.CEREBRUM + anatomy.HIND, *template)
        brain = functools.reduce(np.maximum, lobes)
        # The skull bridges the clefts between the lobes, which the brain's surface follows.
        cavity = anatomy.rounded_union(lobes, 14.0)
        image = np.full(outside.shape, 0.02, np.float32)
        _blend(image, 0.75, outside, edge_mm)
        _blend(image, 1.7 + 0.1 * texture, outside - 1.5, edge_mm)
        fat_mm = np.clip(4.0 + 1.2 * self.fat.on_grid(axes_mm), 2.0, 7.0)
        _blend(image, 0.62 + 0.05 * texture, outside - 1.5 - fat_mm, edge_mm)
        # Fat between the muscles of face and neck: where a coarse field is high.
        _blend(image, 1.4, np.minimum(4.0 * (self.planes.on_grid(axes_mm) - 1.3), outside - 6.0), edge_mm)
        self._paint_shapes(image, anatomy.ORBITS, 1.5, template, axes_mm, edge_mm)
        _blend(image, 0.22 + 0.02 * texture, np.minimum(cavity + 8.5, outside - 2.5), edge_mm)
        _blend(image, 0.5, np.minimum(1.2 - np.abs(cavity + 6.0), outside - 2.5), edge_mm)
        self._paint_shapes(image, anatomy.EYES, 0.45, template, axes_mm, edge_mm)
        self._paint_shapes(image, anatomy.AIR, 0.03, template, axes_mm, edge_mm)
        self._paint_shapes(image, anatomy.CLIVUS, 1.35 + 0.2 * texture, template, axes_mm, edge_mm)
        _blend(image, 0.5, cavity + 2.5, edge_mm)
        # Sulci where a field crosses zero, only near the surface; the fissure between the hemispheres.
        folds = np.where(brain < 11.0, 2.4 * np.abs(self.folds.on_grid(axes_mm)) - 0.8, FAR_MM)
        fissure = 4.0 * (np.abs(template[0]) - 0.9) + FAR_MM * (template[2] < 52)
        tissue = np.minimum(np.minimum(brain, folds), fissure)
        _blend(image, 0.93 + 0.03 * texture, tissue, edge_mm)
        _blend(image, 1.06 + 0.03 * texture, np.minimum(tissue, np.minimum(brain, folds) - 2.5), edge_mm)
        self._paint_shapes(image, anatomy.VENTRICLES, 0.5, template, axes_mm, edge_mm)
        self._paint_shapes(image, anatomy.CISTERNS, 0.5, template, axes_mm, edge_mm)
        for shape, value in self.blobs:
            self._paint_shapes(image, (shape,), value, template, axes_mm, edge_mm)
        return image, cavity

    def _paint_shapes(
        self,
        image: np.ndarray,
        shapes: tuple[anatomy.Shape, ...],
        value: np.ndarray | float,
        template: list[np.ndarray],
        axes_mm: list[np.ndarray],
        edge_mm: float,
    ) -> None:
        """Paint ellipsoids one by one, each within a box of voxels that holds it however it is warped; in place."""
        for centre, semi in shapes:
            near = [
                np.flatnonzero(np.abs(axes_mm[k] / self.size - centre[k]) < semi[k] + 4 * WARP_MM) for k in range(3)
            ]
            box = tuple(slice(i[0], i[-1] + 1) if len(i) else slice(0, 0) for i in near)
            if image[box].size:
                depth = depth_below(((centre, semi),), *(coordinate[box] for coordinate in template))
                _blend(image[box], value[box] if isinstance(value, np.ndarray) else value, depth, edge_mm)


def _add_vessels(
    rng: np.random.Generator,
    head: Head,
    grid: Grid,
    image: np.ndarray,
    cavity: np.ndarray,
    slab_mm: float,
    trees: str,
) -> np.ndarray:
    """Paint veins, scalp arteries and arteries into the image, in place; returns the label of the arteries."""
    voxel_mm = float(np.mean(grid.spacing_mm))
    calibre = Calibre(rng.uniform(0.86, 0.98), max(0.35, 0.48 * voxel_mm), trees)
    fresh = rng.uniform(3.8, 4.6)
    height = grid.axes_mm()[2] + rng.uniform(0, slab_mm)
    saturation_Z = 1 - 0.25 * ((height % slab_mm) / slab_mm) ** 3
    saturation = np.broadcast_to(saturation_Z, grid.shape)
    for make_tubes in (anatomy.sinuses, anatomy.scalp_arteries, anatomy.arteries):
        tubes = make_tubes(rng, calibre)
        start, end = head.from_template(tubes.start_S3), head.from_template(tubes.end_S3)
        distance, signal = draw_tubes(Tubes(start, end, tubes.radius_S, tubes.signal_S), grid, margin_mm=1.5 * voxel_mm)
        if make_tubes is anatomy.scalp_arteries:
            distance[cavity > -MASK_MARGIN_MM - 1.5] = FAR_MM  # none goes through the skull
        is_near = distance < FAR_MM
        values, tube_distance, flow = image[is_near], distance[is_near], signal[is_near]
        if make_tubes is anatomy.arteries:
            # On the brain's surface they lie in fluid.
            fluid_depth = np.where((flow > 0.35) & (cavity[is_near] > -2), voxel_mm - tube_distance, -FAR_MM)
            _blend(values, 0.6, fluid_depth, voxel_mm)
        _blend(values, 1 + (fresh - 1) * flow * saturation[is_near], -tube_distance, voxel_mm)
        image[is_near] = values
    return distance < 0


def _acquire(rng: np.random.Generator, image: np.ndarray, scanner: Scanner) -> np.ndarray:
    """Point spread, Rician noise and gain of the scanner; int16 counts."""
    from scipy.ndimage import gaussian_filter

    image = gaussian_filter(image, scanner.point_spread_voxels, truncate=3.0)
    sigma = np.float32(rng.uniform(*scanner.noise))
    real = sigma * rng.standard_normal(image.shape, dtype=np.float32)
    real += image
    imaginary = sigma * rng.standard_normal(image.shape, dtype=np.float32)
    gain = np.float32(BRAIN_COUNTS * rng.uniform(0.85, 1.2))
    return np.rint(gain * np.hypot(real, imaginary)).astype(np.int16)


def generate_subject(
    seed: int,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    scanner: Scanner | None = None,
    trees: str = "steered",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One subject: image int16 XYZ, vessel label uint8 {0,1}, brain mask uint8 {0,1}, affine 4x4 (RAS, mm).

    Same arguments (scanner None: the defaults): same bytes on one machine. The scanner changes the image, not the
    anatomy; `trees` (a name in phantom_vessels.TREES) how arteries branch.
    """
    scanner = scanner or Scanner()
    rng = np.random.default_rng(seed)
    grid = Grid(shape, spacing_mm)
    axes_mm = grid.axes_mm()
    head = Head(rng)
    edge_mm = float(np.mean(np.asarray(grid.spacing_mm) / grid.stretch))
    image, cavity = np.empty(grid.shape, np.float32), np.empty(grid.shape, np.float32)
    slabs = [slice(first, first + NUM_PLANES) for first in range(0, grid.shape[0], NUM_PLANES)]
    for slab in slabs:
        image[slab], cavity[slab] = head.paint([axes_mm[0][slab], *axes_mm[1:]], edge_mm)
    vessel = _add_vessels(rng, head, grid, image, cavity, scanner.slab_mm, trees)
    for slab in slabs:
        image[slab] *= np.exp(scanner.bias * head.bias.on_grid([axes_mm[0][slab], *axes_mm[1:]]))
    affine = np.diag([*grid.spacing_mm, 1.0])
    affine[:3, 3] = -0.5 * (np.asarray(grid.shape) - 1) * grid.spacing_mm
    return _acquire(rng, image, scanner), vessel.astype(np.uint8), (cavity > -MASK_MARGIN_MM).astype(np.uint8), affine
