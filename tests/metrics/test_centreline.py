import numpy as np
import pytest

from vesselgan.metrics.centreline import centreline, centreline_dice, count_components

SHAPE = (24, 16, 16)


def tube(first: int, last: int, *, half: int = 1, y: int = 8, z: int = 8) -> np.ndarray:
    """A straight tube along x with a square section of 2 * half + 1 voxels."""
    mask = np.zeros(SHAPE, bool)
    mask[first : last + 1, y - half : y + half + 1, z - half : z + half + 1] = True
    return mask


def test_the_centreline_of_a_tube_is_its_axis():
    line = centreline(tube(2, 20))
    x, y, z = np.nonzero(line)
    assert set(y) == set(z) == {8}
    assert len(x) == len(set(x)) and min(x) <= 3 and max(x) >= 19  # thinning may take an end voxel


def test_a_thin_line_is_its_own_centreline():
    line = tube(3, 17, half=0)
    assert np.array_equal(centreline(line), line)


@pytest.mark.parametrize("section", [(1, 2), (2, 1), (2, 2), (4, 4), (6, 6), (4, 3)])
def test_a_part_of_even_width_is_not_lost(section):
    mask = np.zeros(SHAPE, bool)
    mask[2:20, 4 : 4 + section[0], 5 : 5 + section[1]] = True
    mask[2:20, 13, 13] = True  # another part, which must not hide that the first is gone
    line = centreline(mask)
    assert line[2:20, 13, 13].all()
    first = line & mask
    first[:, 13, 13] = False
    assert 10 <= first.sum() <= 18  # a line along x, not the whole tube
    assert not (line & ~mask).any()


def test_small_and_empty_masks():
    cube = np.zeros((6, 6, 6), bool)
    assert not centreline(cube).any() and count_components(cube) == 0
    cube[2:4, 2:4, 2:4] = True
    assert 1 <= centreline(cube).sum() <= 8 and not (centreline(cube) & ~cube).any()


def test_centreline_dice_of_hand_made_lines():
    truth, predicted = tube(0, 9, half=0), tube(6, 21, half=0)
    # The lines are their own centrelines: 10 and 16 voxels, 4 of them shared. 2 * 0.25 * 0.4 / 0.65.
    assert centreline_dice(truth, predicted) == pytest.approx(2 * (4 / 16) * (4 / 10) / (4 / 16 + 4 / 10), abs=1e-15)
    assert centreline_dice(truth, truth) == 1.0
    assert centreline_dice(truth, tube(12, 20, half=0)) == 0.0
    # A thicker vessel on the same course is no error of the course.
    assert centreline_dice(tube(2, 20, half=0), tube(2, 20, half=2)) == 1.0


def test_a_wrong_course_costs():
    trunk, twig = tube(1, 22, half=3), tube(1, 22, half=0, z=14)
    assert centreline_dice(trunk | twig, trunk) < 0.8 < 0.97 < 2 * trunk.sum() / (2 * trunk.sum() + twig.sum())


def test_empty_masks_have_a_defined_centreline_dice():
    empty, one = np.zeros(SHAPE, bool), tube(1, 5)
    assert centreline_dice(empty, empty) == 1.0
    assert centreline_dice(one, empty) == centreline_dice(empty, one) == 0.0


def test_parts_that_touch_by_a_corner_are_one():
    mask = np.zeros((6, 6, 6), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert count_components(mask) == 1
    mask[4, 4, 4] = mask[4, 1, 1] = True
    assert count_components(mask) == 3
