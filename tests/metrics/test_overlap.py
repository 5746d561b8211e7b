import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vesselgan.core.errors import DataError
from vesselgan.metrics.overlap import dice, precision, recall


def test_dice_of_two_of_three_voxels_is_four_fifths():
    truth, predicted = np.zeros((2, 2, 2)), np.zeros((2, 2, 2))
    truth[0, 0, :] = 1
    truth[1, 1, 1] = 1
    predicted[0, 0, :] = 1
    assert dice(truth, predicted) == 4 / 5  # 2 * 2 / (3 + 2)


def test_dice_is_defined_for_empty_masks():
    empty, one = np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 3), np.uint8)
    one[1, 1, 1] = 1
    assert dice(empty, empty) == 1.0
    assert dice(empty, one) == 0.0
    assert dice(one, empty) == 0.0


@settings(max_examples=50, deadline=None)
@given(arrays(bool, (2, 4, 3, 3)))
def test_dice_equals_the_count_over_sets(pair):
    truth, predicted = pair
    g, p = set(map(tuple, np.argwhere(truth))), set(map(tuple, np.argwhere(predicted)))
    expected = 2 * len(g & p) / (len(g) + len(p)) if g or p else 1.0
    assert dice(truth, predicted) == expected
    assert dice(predicted, truth) == expected


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([np.uint8, np.int64, np.float32, bool]))
def test_dice_does_not_depend_on_the_type_of_the_mask(dtype):
    truth, predicted = np.eye(4), np.tri(4)
    assert dice(truth.astype(dtype), predicted) == 2 * 4 / (4 + 10)


def test_a_probability_map_and_a_label_of_255_are_refused():
    mask = np.ones((2, 2, 2))
    with pytest.raises(DataError, match="0.4"):
        dice(mask, mask * 0.4)
    with pytest.raises(DataError, match="255"):
        dice(mask * 255, mask)
    with pytest.raises(DataError, match="nan"):
        dice(mask, mask * np.nan)


def test_masks_of_different_shape_are_refused_with_both_shapes():
    with pytest.raises(DataError, match=r"\(2, 2, 2\).*\(2, 2, 3\)"):
        dice(np.ones((2, 2, 2)), np.ones((2, 2, 3)))


def test_precision_and_recall_of_hand_made_masks():
    truth, predicted = np.array([1, 1, 1, 1, 0, 0]), np.array([0, 0, 0, 1, 1, 0])
    assert (precision(truth, predicted), recall(truth, predicted)) == (1 / 2, 1 / 4)


def test_precision_and_recall_of_empty_masks_are_defined():
    empty, one = np.zeros(4, bool), np.array([0, 1, 0, 0], bool)
    assert (precision(empty, empty), recall(empty, empty)) == (1.0, 1.0)
    assert (precision(one, empty), recall(one, empty)) == (0.0, 0.0)
    assert (precision(empty, one), recall(empty, one)) == (0.0, 0.0)
