import numpy as np
import pytest

from vesselgan.metrics.label_statistics import (
    UNITS,
    consistency,
    distance,
    label_statistics,
    shift_label,
    skeleton_length_mm,
    values_of,
)

SHAPE, SPACING = (20, 16, 16), (0.5, 1.0, 2.0)


def tube(width: int = 3, *, start: int = 6) -> np.ndarray:
    """width x width voxels, all along x."""
    label = np.zeros(SHAPE, np.uint8)
    label[:, start : start + width, start : start + width] = 1
    return label


def test_a_straight_tube_by_hand():
    label = tube()
    label[4, 14, 14] = 1
    found = label_statistics(100.0 * label.astype(np.float32) + 20, label, SPACING)
    assert found.vessel_fraction == (20 * 9 + 1) / 20 / 16 / 16
    assert (found.num_components, found.component_voxels.tolist()) == (2, [180, 1])
    assert found.contrast == pytest.approx(100.0)
    assert found.consistency == 1.0
    # The line along the middle: 20 voxels, at most one lost at either end where thinning eats; two from its middle to
    # the background in voxels of y, which are 1 mm. The lone voxel: the nearest background is 0.5 mm away, along x.
    assert 17 * 0.5 <= found.centreline_mm <= 19 * 0.5
    assert set(found.radius_mm.tolist()) == {2.0, 0.5}


def test_lengths_are_steps_between_touching_voxels():
    line = np.zeros((5, 5, 5), bool)
    assert skeleton_length_mm(line, (1, 1, 1)) == 0.0
    line[0, 0, 0] = True
    assert skeleton_length_mm(line, (1, 1, 1)) == 0.0
    line[1, 0, 0] = line[2, 0, 0] = True  # two steps along x
    line[3, 1, 1] = True  # and one across a corner
    line[0, 4, 4] = True  # a part of its own
    assert skeleton_length_mm(line, (0.5, 1.0, 2.0)) == pytest.approx(0.5 + 0.5 + np.sqrt(0.25 + 1 + 4))
    corner = np.zeros((3, 3, 3), bool)
    corner[0, 0, 0] = corner[1, 0, 0] = corner[1, 1, 0] = True  # all three touch: the diagonal is no further way
    assert skeleton_length_mm(corner, (1, 1, 1)) == 2.0


def test_a_label_out_of_place_loses():
    source = np.random.default_rng(0)
    for _ in range(5):
        start = int(source.integers(4, 9))
        label = tube(int(source.integers(2, 5)), start=start)
        image = (60 + 8 * source.normal(size=SHAPE) + 100 * label).astype(np.float32)
        whole = consistency(image, label)
        assert whole > 0.99
        assert consistency(image, shift_label(label)) < whole - 0.1
        assert consistency(image, tube(3, start=1)) < 0.7  # overlaps nothing or little
        assert consistency(255 - image, label) < 0.01
        assert consistency(image * 0.3, label) == whole  # brightness and contrast do not count


def test_the_shift_moves_along_every_axis():
    label = np.zeros((4, 4, 4), np.uint8)
    label[1, 0, 1] = label[3, 3, 3] = 1
    moved = shift_label(label)
    assert np.argwhere(moved).tolist() == [[3, 2, 3]]


def test_empty_and_full_labels_have_what_is_defined():
    image = np.full(SHAPE, 50.0, np.float32)
    empty = label_statistics(image, np.zeros(SHAPE, np.uint8), SPACING)
    assert (empty.vessel_fraction, empty.num_components, empty.centreline_mm) == (0.0, 0, 0.0)
    assert (empty.contrast, empty.consistency, empty.radius_mm.size, empty.component_voxels.size) == (None, None, 0, 0)
    full = label_statistics(image, np.ones(SHAPE, np.uint8), SPACING)
    assert (full.vessel_fraction, full.num_components, full.contrast, full.radius_mm.size) == (1.0, 1, None, 0)
    assert consistency(image, tube()) == 0.5  # a flat image says nothing
    for name in UNITS:
        assert values_of([empty, full], name).dtype == np.float64
    assert values_of([empty, full], "contrast").size == 0


def test_the_distance_moves_one_sample():
    assert distance(np.array([0.0, 1, 3]), np.array([5.0, 6, 8])) == pytest.approx(5.0)
    assert distance(np.zeros(0), np.ones(3)) is None
