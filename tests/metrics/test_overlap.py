import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from vesselgan.core.errors import DataError
from vesselgan.metrics.overlap import dice, precision, recall


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_dice_of_half_a_triangle(dtype):
    assert dice(np.eye(4).astype(dtype), np.tri(4)) == 2 * 4 / (4 + 10)


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


def test_what_is_no_mask_is_refused():
    mask = np.ones((2, 2, 2))
    with pytest.raises(DataError, match="0.4"):
        dice(mask, mask * 0.4)
    with pytest.raises(DataError, match="255"):
        dice(mask * 255, mask)
    with pytest.raises(DataError, match="nan"):
        dice(mask, mask * np.nan)
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
