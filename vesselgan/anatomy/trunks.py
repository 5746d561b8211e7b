"""The large arteries of the brain as curves with radii: carotids, vertebrals, and a circle of Willis with its variants.

No patient's tree is read. Diameters and lengths are the means and standard deviations that Shatri et al. measured in
time-of-flight angiograms (Open Access Maced J Med Sci 2017, doi 10.3889/oamjms.2017.160, Table "Dimensions of arteries
of the circle of Willis"); variants are as frequent as in the 2,246 healthy adults of BioMed Research International
2015, 976340. Courses are drawn by hand so that their lengths are the published ones; the cerebellar arteries' radii
are a guess.

Positions are mm of an adult's head, x to the right, y to the front, z up, the origin in the middle of the slab.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MURRAY_EXPONENT = 3.0
"""r^3 of a vessel is the sum of its branches' r^3 (Murray 1926)."""
RADII_MM = {"ica": (1.90, 0.10), "m1": (1.68, 0.16), "a1": (1.05, 0.14), "acoa": (0.75, 0.11), "pcoa": (0.61, 0.10)}
RADII_MM |= {"p1": (1.00, 0.16), "ba": (1.64, 0.17)}
"""Mean and standard deviation: half of the published diameters."""
INCOMPLETE_FRONT, PCOA_PRESENT, FETAL_P1 = 0.214, 0.40, 0.159
"""Shares of heads without a complete front of the circle; of sides with a posterior communicating artery (0.4 squared
is the 16 % of heads whose circle is complete behind); of heads with a thin first part of a posterior cerebral."""
HALF = 0.5 ** (1 / MURRAY_EXPONENT)
"""Radius of each of two equal branches over that of their parent."""
JITTER_MM = 0.8
STEP_MM = 1.0
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Curve:
    """A vessel's centreline, points [P, 3] in mm, with a radius at each."""

    points_P3: np.ndarray
    radius_P: np.ndarray


@dataclass(frozen=True)
class Stem:
    """A trunk whose points may sprout a tree; the tree's first radius, its side (-1, 1), above or below the tent."""

    curve: Curve
    radius_mm: float
    side: int
    is_above: bool


@dataclass(frozen=True)
class Trunks:
    curves: list[Curve]
    """All of them, the stems' too."""
    stems: list[Stem]
    inlets: list[Curve]
    """Carotids and vertebrals, by which blood enters: every connected part of the tree holds the begin of one."""


class _Drawing:
    """Collects one head's trunks; nodes are given for the right side."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.trunks = rng, Trunks([], [], [])
        self.radius = {name: max(0.5 * mean, rng.normal(mean, sd)) for name, (mean, sd) in RADII_MM.items()}
        self.nodes: dict[tuple[float, ...], np.ndarray] = {}

    def node(self, point: Point, side: int) -> np.ndarray:
        """Where this head has a landmark: the same whichever vessel asks."""
        mirrored = (side * point[0], point[1], point[2])
        if mirrored not in self.nodes:
            shift = self.rng.normal(0.0, JITTER_MM, 3)
            self.nodes[mirrored] = np.array(mirrored) + (shift * (1, 1, 0.5) if point[0] else shift * (0.5, 1, 0.5))
        return self.nodes[mirrored]

    def draw(self, side: int, points: Sequence[Point], radii: tuple[float, float]) -> Curve:
        """A smooth curve through the landmarks, its radius going from the first to the second value."""
        from scipy.interpolate import make_interp_spline

        nodes_K3 = np.array([self.node(point, side) for point in points])
        chord_K = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(nodes_K3, axis=0), axis=1))])
        share_P = np.linspace(0, 1, max(2, int(chord_K[-1] / STEP_MM) + 1))
        curve = make_interp_spline(chord_K, nodes_K3, k=min(3, len(nodes_K3) - 1))
        drawn = Curve(curve(chord_K[-1] * share_P), radii[0] + (radii[1] - radii[0]) * share_P)
        self.trunks.curves.append(drawn)
        return drawn

    def stem(self, side: int, points: Sequence[Point], radii: tuple[float, float], *, is_above: bool) -> None:
        self.trunks.stems.append(Stem(self.draw(side, points, radii), radii[1], side, is_above))


TERMINUS, M1_END, A1_END = (10.0, 9.0, -1.0), (25.0, 8.0, 1.0), (1.4, 18.0, 4.0)
BASILAR_TIP, P1_END, VERTEBRALS_MEET = (0.0, -2.0, -3.0), (6.2, -3.5, -2.0), (0.0, -7.0, -32.0)
CAROTID = [(25, -6, -46), (25, -7, -34), (22, -3, -27), (14, 6, -22), (12, 12, -15), (11.5, 18, -11), (10.5, 14, -6)]


def draw_trunks(rng: np.random.Generator) -> Trunks:
    """One head's trunks; curves that meet share a point."""
    drawing = _Drawing(rng)
    radius, front_is_incomplete = drawing.radius, rng.random() < INCOMPLETE_FRONT
    thin_front, thin_behind = int(rng.integers(2)), (int(rng.integers(2)) if rng.random() < FETAL_P1 else None)
    has_pcoa = rng.random(2) < PCOA_PRESENT
    lacks_acoa = front_is_incomplete and rng.random() < 0.5
    drawing.draw(1, [VERTEBRALS_MEET, (0, -4, -18), BASILAR_TIP], (radius["ba"], 0.9 * radius["ba"]))
    for index, side in enumerate((1, -1)):
        is_fetal = thin_behind == index
        a1 = radius["a1"] * (0.5 if front_is_incomplete and not lacks_acoa and thin_front == index else 1.0)
        _carotid(drawing, side, a1)
        _vertebral(drawing, side)
        p1 = radius["p1"]
        drawing.draw(side, [BASILAR_TIP, P1_END], (0.5 * p1, 0.5 * p1) if is_fetal else (p1, p1))
        behind = [P1_END, (14, -7, -2), (20, -17, 0), (19, -30, 4), (12, -42, 9)]
        drawing.stem(side, behind, (p1, 0.9 * p1), is_above=True)
        if has_pcoa[index] or is_fetal:
            wide = p1 if is_fetal else radius["pcoa"]
            drawing.draw(side, [TERMINUS, (9.5, 3, -3), P1_END], (wide, wide))
    if not lacks_acoa:
        left, right = drawing.node(A1_END, -1), drawing.node(A1_END, 1)
        drawing.trunks.curves.append(Curve(np.array([left, right]), np.full(2, radius["acoa"])))
    return drawing.trunks


def _carotid(drawing: _Drawing, side: int, a1: float) -> None:
    """Internal carotid, middle and anterior cerebral artery."""
    ica, m1 = drawing.radius["ica"], drawing.radius["m1"]
    course = drawing.draw(side, [*CAROTID, TERMINUS], (1.15 * ica, ica))
    drawing.trunks.inlets.append(course)
    drawing.draw(side, [TERMINUS, (17, 10, 0.5), M1_END], (m1, m1))
    for points in ([M1_END, (33, 6, 8), (39, 0, 18)], [M1_END, (33, 2, 2), (40, -12, 8)]):
        drawing.stem(side, points, (HALF * m1, 0.9 * HALF * m1), is_above=True)
    drawing.draw(side, [TERMINUS, (6, 14, 2), A1_END], (a1, a1))
    around_genu = [A1_END, (1.8, 28, 8), (2, 37, 17), (2, 36, 30), (2, 26, 38)]
    drawing.stem(side, around_genu, (drawing.radius["a1"], 0.8 * drawing.radius["a1"]), is_above=True)


def _vertebral(drawing: _Drawing, side: int) -> None:
    """Vertebral artery, of the size that two of give the basilar, and the three cerebellar arteries."""
    radius = HALF * drawing.radius["ba"] * drawing.rng.uniform(0.7, 1.1)
    course = drawing.draw(side, [(17, -26, -46), (16, -30, -42), (9, -18, -38), VERTEBRALS_MEET], (radius, radius))
    drawing.trunks.inlets.append(course)
    thin = 0.6 * drawing.radius["p1"]
    for points in (
        [(9, -18, -38), (14, -28, -36), (18, -40, -34)],
        [(0, -4, -18), (10, -10, -20), (22, -18, -20)],
        [BASILAR_TIP, (9, -8, -6), (16, -20, -8)],
    ):
        drawing.stem(side, points, (thin, thin), is_above=False)
