"""Trees that are connected by construction, their radii by hand, and grids that cannot hold a head."""

import numpy as np
import pytest
from scipy import ndimage

from vesselgan.anatomy.growth import grow, murray_radii
from vesselgan.anatomy.head import check_training_volumes, synthetic_head
from vesselgan.anatomy.tissue import OUTSIDE
from vesselgan.anatomy.trunks import RADII_MM, Curve, Stem, draw_trunks
from vesselgan.core.errors import UsageError

SHAPE, SPACING_MM = (96, 112, 48), (1.0, 1.05, 1.2)
ODD = [((97, 81, 37), (0.9, 1.1, 1.3)), ((150, 64, 120), (0.6, 1.6, 0.4))]


@pytest.mark.parametrize(("shape", "spacing_mm"), [(SHAPE, SPACING_MM), *ODD])
def test_every_vessel_hangs_on_an_inlet(shape, spacing_mm):
    """Two carotids and the vertebrals: three parts at most, each reaching the slab's lower face."""
    for seed in range(3):
        head = synthetic_head(seed, shape, spacing_mm)
        components_XYZ, count = ndimage.label(head.label_XYZ, np.ones((3, 3, 3)))
        assert 1 <= count <= 3
        assert set(range(1, count + 1)) <= set(np.unique(components_XYZ[:, :, :2]))
        assert head.label_XYZ.shape == head.mask_XYZ.shape == shape
        assert 0.001 < head.label_XYZ.mean() < 0.02 and 0.2 < head.mask_XYZ.mean() < 0.6
        assert head.label_XYZ[head.mask_XYZ > 0].sum() > 0.5 * head.label_XYZ.sum()
        assert head.label_XYZ[head.tissue_XYZ == OUTSIDE].mean() < 1e-4
        assert not (ndimage.binary_dilation(head.mask_XYZ, iterations=2) & (head.tissue_XYZ == OUTSIDE)).any()


@pytest.mark.parametrize(("shape", "spacing_mm"), [(SHAPE, SPACING_MM), ((200, 240, 120), (0.6, 0.6, 0.6))])
def test_no_head_loses_its_posterior_circulation(shape, spacing_mm):
    """The basilar artery runs on the midline, low and behind the carotids."""
    x, y, z = (np.array(shape) * [0.5, 0.48, 0.3]).astype(int)
    for seed in (5, 14, 47, 51, 62):
        label_XYZ = synthetic_head(seed, shape, spacing_mm).label_XYZ
        assert label_XYZ[x - 5 : x + 5, y - 8 : y + 8, z - 2 : z + 2].any(), seed


def test_channels_run_from_0_to_1():
    head = synthetic_head(4, SHAPE, SPACING_MM)
    label_XYZ, tissue_XYZ = head.channels(2)
    assert (label_XYZ == head.label_XYZ).all() and (head.channels(1) == head.label_XYZ).all()
    assert set(np.unique(tissue_XYZ)) == {0, 0.5, 1} and ((tissue_XYZ == 1) == head.mask_XYZ).all()


def test_a_seed_gives_the_same_bytes():
    first, again, other = (synthetic_head(seed, SHAPE, SPACING_MM) for seed in (5, 5, 6))
    assert first.label_XYZ.tobytes() == again.label_XYZ.tobytes()
    assert first.mask_XYZ.tobytes() == again.mask_XYZ.tobytes()
    assert (first.label_XYZ != other.label_XYZ).any() and (first.mask_XYZ != other.mask_XYZ).any()


def test_cubes_of_branches_add_up():
    """A stem's node 0 of radius 2 feeds ends 2, 3 and 4: node 1 feeds the first two."""
    parent_N = np.array([-1, 0, 1, 1, 0])
    radius_N = murray_radii(parent_N, np.zeros(5, int), np.array([2.0]))
    np.testing.assert_allclose(radius_N**3, [8, 16 / 3, 8 / 3, 8 / 3, 8 / 3])


def test_a_tree_reaches_what_pulls():
    line = Curve(np.array([[0.0, 0, z] for z in range(6)]), np.ones(6))
    points_A3 = np.array([[20.0, 0, 4], [-20.0, 3, 9]])
    curves = grow(np.random.default_rng(0), [Stem(line, 1.0, 1, True)], points_A3, min_radius_mm=0.1)
    nodes_P3 = np.concatenate([curve.points_P3 for curve in curves])
    for point_3 in points_A3:
        assert np.linalg.norm(nodes_P3 - point_3, axis=1).min() <= 3.5
    known = {tuple(point) for point in line.points_P3}
    for curve in curves:  # each begins where something is
        assert tuple(curve.points_P3[0]) in known
        known.add(tuple(curve.points_P3[1]))


def test_trunks_have_published_lengths():
    """Of the basilar artery 30.2 mm (SD 1.9), of the first part of the anterior cerebral 14.0 (SD 1.4)."""
    lengths = [
        [np.linalg.norm(np.diff(curve.points_P3, axis=0), axis=1).sum() for curve in draw_trunks(rng).curves]
        for rng in map(np.random.default_rng, range(20))
    ]
    assert np.mean([of[0] for of in lengths]) == pytest.approx(30.2, abs=2)
    rng = np.random.default_rng(0)
    basilar = [draw_trunks(rng).curves[0].radius_P[0] for _ in range(200)]
    mean, sd = RADII_MM["ba"]
    assert np.mean(basilar) == pytest.approx(mean, abs=4 * sd / 200**0.5)


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        ((31, 112, 48), (3.0, 1.0, 1.0)),
        ((96, 112, 48), (0.3, 0.3, 0.3)),
        ((96, 112), (1.0, 1.0)),
        ((96, 112, 48), (1.0, 0.0, 1.0)),
        ((96, 112, 100000), (1.0, 1.0, 1.0)),
    ],
)
def test_grids_that_hold_no_head_are_refused(shape, spacing_mm):
    with pytest.raises(UsageError, match="shape"):
        synthetic_head(0, shape, spacing_mm)


def test_training_volumes_that_hold_a_head_pass():
    check_training_volumes(SHAPE, SPACING_MM, can_make_heads=True)
    for can_make_heads in (True, False):
        with pytest.raises(UsageError, match="no head's") as refused:
            check_training_volumes((31, 112, 48), SPACING_MM, can_make_heads=can_make_heads)
        assert ("volumes=N shape=[152,183,75]" in str(refused.value)) == can_make_heads
