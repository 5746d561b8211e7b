"""Where patches lie: every voxel is covered, no patch leaves the volume, and a draw is its subject's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import patches
from vesselgan.core.errors import DataError

SIZES = st.tuples(st.integers(1, 12), st.integers(0, 40))  # patch, and what the volume has beyond it


def test_the_papers_volume_has_18_patches():
    corners = patches.grid_corners((312, 384, 127), (128, 128, 64))
    assert sorted({tuple(c) for c in corners.tolist()}) == [
        (x, y, z) for x in (0, 92, 184) for y in (0, 128, 256) for z in (0, 63)
    ]


@settings(max_examples=30, deadline=None)
@given(st.tuples(SIZES, SIZES, SIZES))
def test_the_grid_covers_every_voxel_without_waste(sizes):
    patch_shape = tuple(patch for patch, _ in sizes)
    shape = tuple(patch + more for patch, more in sizes)
    corners = patches.grid_corners(shape, patch_shape)
    for axis in range(3):  # the grid is a product, so an axis can be looked at alone
        starts = sorted(set(corners[:, axis].tolist()))
        assert len(starts) == -(-shape[axis] // patch_shape[axis])
        covered = {voxel for start in starts for voxel in range(start, start + patch_shape[axis])}
        assert covered == set(range(shape[axis]))
    assert len(corners) == len({tuple(c) for c in corners.tolist()})
    assert len(corners) == np.prod([len(set(corners[:, axis].tolist())) for axis in range(3)])


def test_a_volume_thinner_than_the_patch_is_refused():
    with pytest.raises(DataError, match="20 x 8 x 20 .*10 x 10 x 10.*reflect_pad"):
        patches.grid_corners((20, 8, 20), (10, 10, 10))
    with pytest.raises(DataError, match="thinner"):
        patches.vessel_corners(np.ones((20, 8, 20)), (10, 10, 10), 1, seed=1, subject="a", purpose="gan")


def draw(label: np.ndarray, count: int, *, seed: int = 1, subject: str = "a", purpose: str = "gan") -> np.ndarray:
    return patches.vessel_corners(label, (4, 6, 5), count, seed=seed, subject=subject, purpose=purpose)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_vessel_patches_hold_a_vessel_and_stay_inside(seed):
    label = np.random.default_rng(seed).random((9, 7, 8)) < 0.01
    label.flat[seed % label.size] = True
    for corner in draw(label, 20):
        assert patches.cut(label, corner, (4, 6, 5)).any()  # cut asserts that the patch stays inside


def test_a_central_vessel_centres_its_patch():
    label = np.zeros((20, 20, 20), np.uint8)
    label[10, 11, 12] = 1
    assert draw(label, 1).tolist() == [[8, 8, 10]]  # minus half of 4, 6, 5


@pytest.mark.parametrize(("voxel", "corner"), [((0, 0, 0), [0, 0, 0]), ((19, 19, 19), [16, 14, 15])])
def test_a_vessel_at_the_edge_moves_its_patch(voxel, corner):
    label = np.zeros((20, 20, 20), np.uint8)
    label[voxel] = 1
    assert draw(label, 1).tolist() == [corner]


def test_every_voxel_is_drawn_before_any_twice():
    label = np.zeros((30, 30, 30), np.uint8)
    label[5:10, 15, 10:20] = 1  # 50 voxels far from the edges: one corner each
    assert len({tuple(c) for c in draw(label, 50).tolist()}) == 50


def test_a_draw_depends_on_seed_subject_purpose_alone():
    label = np.random.default_rng(5).random((20, 20, 20)) < 0.1
    first = draw(label, 8)
    np.testing.assert_array_equal(draw(label, 8), first)
    for other in (draw(label, 8, seed=2), draw(label, 8, subject="b"), draw(label, 8, purpose="unet")):
        assert not np.array_equal(other, first)


def test_too_few_vessel_voxels_are_drawn_again():
    label = np.zeros((20, 20, 20), np.uint8)
    label[9, 9, 9:12] = 1
    corners = patches.vessel_corners(label, (4, 6, 5), 7, seed=1, subject="a", purpose="gan")
    assert len(corners) == 7


def test_an_empty_label_is_refused():
    with pytest.raises(DataError, match="sub-9: the label is empty"):
        patches.vessel_corners(np.zeros((9, 9, 9)), (4, 4, 4), 1, seed=1, subject="sub-9", purpose="gan")


def test_a_thin_volume_is_reflected():
    volume = np.arange(3, dtype=np.float32).reshape(1, 3, 1) + np.zeros((4, 1, 2), np.float32)
    padded = patches.reflect_pad(volume, (4, 5, 2))
    assert padded.shape == patches.padded_shape(volume.shape, (4, 5, 2)) == (4, 5, 2)
    assert padded[0, :, 0].tolist() == [0, 1, 2, 1, 0]
    assert patches.reflect_pad(volume, (4, 3, 2)) is volume
