"""The phantom's head as depth functions, and which vessels run where in it.

Positions in template mm, radii in volume mm. Template axes: right, anterior, up; the origin on the midline at the
slab's lower face, at the level of the atlas. The field of view of the paper's volumes (156 x 192 x 89 mm) holds the
template as it is; other fields of view stretch it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.phantom_vessels import TREES, Depth, Tip, Tubes, concatenate, trunk

TEMPLATE_MM = (156.0, 192.0, 88.9)
TOP_MM = 93.0
"""Where branches stop: a little above the slab's upper face."""

Shape = tuple[tuple[float, float, float], tuple[float, float, float]]
"""An ellipsoid: centre and half axes, mm."""

HEAD: tuple[Shape, ...] = (
    ((0, -2, 60), (73, 92, 85)),
    ((0, 22, 4), (63, 68, 62)),
    ((0, -22, -12), (60, 62, 60)),
    ((0, 86, 8), (13, 14, 20)),
)
"""Vault, face, neck, nose."""
CEREBRUM: tuple[Shape, ...] = (
    ((0, -3, 80), (62, 80, 50)),
    ((40, 8, 36), (20, 37, 20)),
    ((-40, 8, 36), (20, 37, 20)),
)
"""Hemispheres and the two temporal lobes."""
HIND: tuple[Shape, ...] = (
    ((0, -48, 25), (47, 31, 22)),
    ((0, -20, 14), (13, 12, 32)),
)
"""Cerebellum, brain stem with the cord."""
CISTERNS: tuple[Shape, ...] = (
    ((0, 8, 38), (15, 15, 8)),
    ((0, -30, 44), (17, 9, 6)),
    ((31, 4, 46), (13, 7, 5)),
    ((-31, 4, 46), (13, 7, 5)),
)
"""Suprasellar, ambient, the two Sylvian."""
VENTRICLES: tuple[Shape, ...] = (
    ((11, 8, 78), (7, 28, 10)),
    ((-11, 8, 78), (7, 28, 10)),
    ((20, -32, 70), (8, 16, 13)),
    ((-20, -32, 70), (8, 16, 13)),
    ((0, -36, 27), (8, 6, 9)),
)
AIR: tuple[Shape, ...] = (
    ((0, 56, 12), (13, 24, 22)),
    ((27, 55, 3), (13, 16, 15)),
    ((-27, 55, 3), (13, 16, 15)),
    ((0, 82, 44), (17, 6, 9)),
    ((0, 24, -4), (15, 9, 14)),
    ((50, -22, 12), (9, 11, 11)),
    ((-50, -22, 12), (9, 11, 11)),
)
"""Nose, maxillary and frontal sinuses, pharynx, mastoid cells."""
ORBITS: tuple[Shape, ...] = (((32, 62, 28), (18, 24, 17)), ((-32, 62, 28), (18, 24, 17)))
EYES: tuple[Shape, ...] = (((33, 70, 28), (12, 12, 12)), ((-33, 70, 28), (12, 12, 12)))
CLIVUS: tuple[Shape, ...] = (((0, 9, 16), (9, 8, 15)),)
"""Fatty marrow in front of the brain stem, bright."""


def depths(shapes: Sequence[Shape], x: np.ndarray, y: np.ndarray, z: np.ndarray) -> list[np.ndarray]:
    """Depth in mm below each ellipsoid's surface (first-order distance), positive inside. x, y, z broadcast."""
    depths_mm = []
    for (cx, cy, cz), (a, b, c) in shapes:
        p, q, r = (x - cx) / a, (y - cy) / b, (z - cz) / c
        level = np.sqrt(p * p + q * q + r * r)
        slope = np.sqrt((p / a) ** 2 + (q / b) ** 2 + (r / c) ** 2)
        depths_mm.append((1 - level) * level / (slope + 1e-6))
    return depths_mm


def depth_below(shapes: Sequence[Shape], x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Depth in mm below the surface of the ellipsoids' union, positive inside. x, y, z broadcast."""
    return functools.reduce(np.maximum, depths(shapes, x, y, z))


def rounded_union(depths_mm: Sequence[np.ndarray], round_mm: float) -> np.ndarray:
    """Depth below a union whose clefts are filled: by a quarter of round_mm where two surfaces meet, less around it."""
    deepest = depths_mm[0]
    for depth in depths_mm[1:]:
        share = np.clip(0.5 + 0.5 * (depth - deepest) / round_mm, 0, 1)
        deepest = deepest + (depth - deepest) * share + round_mm * share * (1 - share)
    return deepest


def surface_of(shapes: Sequence[Shape]) -> Depth:
    """`depth_below` as a function of points."""
    return lambda points_N3: depth_below(shapes, *points_N3.T)


@dataclass(frozen=True)
class WillisVariant:
    """One subject's circle of Willis; indices 0 right, 1 left."""

    a1: tuple[float, float]
    """Share of the usual radius: hypoplastic below 0.7."""
    p1: tuple[float, float]
    communicating: tuple[float, float]
    """Posterior communicating arteries; 0: absent, above 1: fetal origin of the posterior cerebral artery."""
    has_anterior_communicating: bool
    vertebral: tuple[float, float]


def draw_variant(rng: np.random.Generator) -> WillisVariant:
    """Anatomical variants at about the frequencies of anatomical series."""
    a1, p1, communicating, vertebral = [1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]
    if rng.random() < 0.15:
        a1[rng.integers(2)] = 0.55
    for side in range(2):
        kind = rng.choice(4, p=[0.3, 0.35, 0.25, 0.1])
        communicating[side] = (0.0, 0.6, 0.9, 1.5)[kind]
        p1[side] = 0.5 if kind == 3 else 1.0
    vertebral[rng.integers(2)] = rng.uniform(0.55, 1.0)
    return WillisVariant(
        a1=(a1[0], a1[1]),
        p1=(p1[0], p1[1]),
        communicating=(communicating[0], communicating[1]),
        has_anterior_communicating=rng.random() > 0.1,
        vertebral=(vertebral[0], vertebral[1]),
    )


@dataclass(frozen=True)
class Calibre:
    """A subject's scale of the table's radii (mm, adult), the radius at which branches end, how they grow."""

    scale: float
    min_radius: float
    trees: str = "steered"
    """A name in TREES."""


Nodes = Sequence[tuple[float, float, float]]


class Tracer:
    """Collects one subject's tubes and the tips of its trees. Nodes and tips are given for the right side;
    `sign` -1 mirrors them."""

    def __init__(self, rng: np.random.Generator, calibre: Calibre) -> None:
        self.rng, self.calibre = rng, calibre
        self.tubes: list[Tubes] = []
        self.tips: list[Tip] = []

    def trace(
        self, sign: float, nodes: Nodes, radii: tuple[float, float], path_mm: float, *, jitter_mm: float = 0.7
    ) -> tuple[float, float, float]:
        """Draw a trunk of the table's radii and return its last node, on the right side."""
        self._trunk(sign, nodes, radii, path_mm, jitter_mm)
        return nodes[-1]

    def trace_to_tip(self, sign: float, nodes: Nodes, radii: tuple[float, float], path_mm: float) -> None:
        """Draw a trunk at whose end a tree begins."""
        self.tips.append(self._trunk(sign, nodes, radii, path_mm, 0.7))

    def sprout(
        self,
        sign: float,
        node: tuple[float, float, float],
        direction: tuple[float, float, float],
        radius: float,
        path_mm: float,
    ) -> None:
        """Begin a tree at a node."""
        mirror = np.array([sign, 1.0, 1.0])
        self.tips.append(
            Tip(np.asarray(node) * mirror, np.asarray(direction) * mirror, radius * self.calibre.scale, path_mm)
        )

    def grow(self, depth: Depth, *, target_depth_mm: float, branch_every_mm: float) -> None:
        """Grow the trees of all tips so far along a surface, and forget the tips."""
        trees = TREES[self.calibre.trees](
            self.rng,
            self.tips,
            depth,
            target_depth_mm=target_depth_mm,
            min_radius=self.calibre.min_radius,
            branch_every_mm=branch_every_mm,
            top_mm=TOP_MM,
        )
        self.tubes.append(trees)
        self.tips = []

    def _trunk(self, sign: float, nodes: Nodes, radii: tuple[float, float], path_mm: float, jitter_mm: float) -> Tip:
        first, last = (radius * self.calibre.scale for radius in radii)
        mirrored = [(sign * x, y, z) for x, y, z in nodes]
        tubes, tip = trunk(self.rng, mirrored, (first, last), path_mm=path_mm, jitter_mm=jitter_mm)
        self.tubes.append(tubes)
        return tip


def _anterior(tracer: Tracer, variant: WillisVariant, side: int) -> None:
    """Carotid, middle and anterior cerebral and ophthalmic artery of one side, and the tips of their trees."""
    s = (1.0, -1.0)[side]
    neck = [(25, -4, -6), (24, -5, 3), (24, -4, 11), (17, 3, 16), (11, 9, 21), (10, 11, 27), (11, 18, 31)]
    siphon = tracer.trace(s, neck, (2.5, 2.2), 0.0)
    fork = tracer.trace(s, [siphon, (11, 20, 34.5), (10, 14, 37), (10, 9, 41.5)], (2.2, 1.9), 55.0)
    limen = tracer.trace(s, [fork, (19, 10, 43.5), (27, 8, 42), (33, 6, 44)], (1.5, 1.35), 80.0)
    tracer.trace_to_tip(s, [limen, (38, 4, 52), (40, 0, 61), (43, -6, 66)], (1.1, 0.95), 105.0)
    tracer.trace_to_tip(s, [limen, (38, -1, 48), (41, -12, 53), (44, -24, 56)], (1.05, 0.9), 105.0)
    tracer.sprout(s, limen, (0.6, 0.8, 0.0), 0.75, 105.0)
    tracer.sprout(s, limen, (0.8, 0.2, -0.6), 0.7, 105.0)
    first = 1.15 * variant.a1[side]
    meeting = tracer.trace(s, [fork, (7, 15, 43), (2.2, 20, 46)], (first, first), 80.0, jitter_mm=0.4)
    around_genu = [meeting, (2.2, 31, 50), (2.4, 40, 60), (2.4, 38, 72), (2.4, 28, 82)]
    tracer.trace_to_tip(s, around_genu, (1.0, 0.85), 100.0)
    tracer.sprout(s, (2.4, 40, 60), (0, 0.9, 0.3), 0.7, 130.0)
    tracer.sprout(s, (2.2, 31, 50), (0, 0.9, -0.3), 0.55, 118.0)
    tracer.trace(s, [(11, 20, 34.5), (17, 32, 33), (25, 46, 31), (24, 58, 33)], (0.6, 0.5), 75.0)


def _posterior(tracer: Tracer, variant: WillisVariant) -> None:
    """Basilar, posterior cerebral and posterior communicating arteries, and the tips of their trees."""
    tracer.trace(1.0, [(0, -5.5, 18), (tracer.rng.normal(0, 1.5), -4, 27), (0, -2, 38)], (1.75, 1.55), 65.0)
    for side, s in enumerate((1.0, -1.0)):
        first = 1.15 * variant.p1[side]
        joint = tracer.trace(s, [(0, -2, 38), (6, -2, 40), (11, -6, 40)], (first, first), 90.0, jitter_mm=0.4)
        tracer.trace_to_tip(s, [joint, (18, -18, 41), (19, -32, 45), (16, -46, 50)], (1.1, 0.9), 105.0)
        tracer.sprout(s, (19, -28, 44), (1, -0.5, -0.1), 0.65, 130.0)
        if variant.communicating[side]:
            thin = 0.75 * variant.communicating[side]
            tracer.trace(s, [(10, 12, 38), (11, 3, 38), joint], (thin, thin), 85.0, jitter_mm=0.4)


def _vertebral(tracer: Tracer, variant: WillisVariant, side: int) -> None:
    """Vertebral artery of one side; tips of the three cerebellar arteries."""
    s, radius = (1.0, -1.0)[side], 1.75 * variant.vertebral[side]
    nodes = [(18, -24, -6), (21, -33, -1), (16, -35, 4), (12, -24, 6), (8, -9, 11), (0, -5.5, 18)]
    tracer.trace(s, nodes, (radius, 0.9 * radius), 20.0)
    tracer.sprout(s, (10, -16, 8.5), (1, -0.4, -0.1), 0.65, 75.0)
    tracer.sprout(s, (1.5, -4.5, 24), (1, -0.1, -0.1), 0.55, 90.0)
    tracer.sprout(s, (1.5, -2.5, 36), (1, -0.6, -0.1), 0.7, 100.0)


def arteries(rng: np.random.Generator, calibre: Calibre) -> Tubes:
    """Every labelled vessel: neck arteries, circle of Willis, cerebral and cerebellar trees."""
    variant, tracer = draw_variant(rng), Tracer(rng, calibre)
    for side in range(2):
        _vertebral(tracer, variant, side)
    tracer.grow(surface_of(HIND), target_depth_mm=1.0, branch_every_mm=22.0)
    _posterior(tracer, variant)
    for side in range(2):
        _anterior(tracer, variant, side)
    if variant.has_anterior_communicating:
        tracer.trace(1.0, [(-2.2, 20, 46), (0, 20.5, 46), (2.2, 20, 46)], (0.8, 0.8), 100.0, jitter_mm=0.2)
    tracer.grow(surface_of(CEREBRUM), target_depth_mm=2.5, branch_every_mm=20.0)
    return concatenate(tracer.tubes)


def scalp_arteries(rng: np.random.Generator, calibre: Calibre) -> Tubes:
    """As bright as the labelled ones and not in the label: superficial temporal, occipital, facial, supraorbital."""
    tracer = Tracer(rng, calibre)
    for s in (1.0, -1.0):
        tracer.trace_to_tip(s, [(56, 4, -6), (57, 4, 6), (60, 4, 18), (65.5, 4, 32)], (1.1, 1.0), 5.0)
        tracer.sprout(s, (39, -61, -4), (0.1, -0.4, 0.9), 0.95, 10.0)
        tracer.sprout(s, (44, 62, -4), (-0.5, 0.5, 0.8), 0.95, 10.0)
        tracer.sprout(s, (20, 77, 40), (0.2, -0.1, 0.9), 0.7, 40.0)
    tracer.grow(surface_of(HEAD), target_depth_mm=4.0, branch_every_mm=32.0)
    return concatenate(tracer.tubes)


def sinuses(rng: np.random.Generator, calibre: Calibre) -> Tubes:
    """Venous sinuses and jugular bulbs at the skull's inner table: wide, fainter than arteries, not in the label."""
    tracer = Tracer(rng, calibre)
    confluence = tracer.trace(1.0, [(0, -74, 95), (0, -81, 78), (0, -81, 60), (0, -78, 47)], (3.4, 3.4), 0.0)
    transverse = [(20, -77, 43), (40, -64, 38), (51, -44, 34), (48, -30, 22), (38, -22, 10), (33, -14, -6)]
    for s in (1.0, -1.0):
        wide = 3.4 * rng.uniform(0.6, 1.1)
        tracer.trace(s, [confluence, *transverse], (wide, wide), 0.0)
    tracer.trace(1.0, [(0, -34, 56), (0, -52, 54), (0, -76, 47)], (1.6, 1.8), 0.0)
    tubes = concatenate(tracer.tubes)
    return Tubes(tubes.start_S3, tubes.end_S3, tubes.radius_S, np.full(len(tubes.radius_S), rng.uniform(0.1, 0.35)))
