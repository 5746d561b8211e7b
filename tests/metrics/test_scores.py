import numpy as np
import pytest

from vesselgan.metrics.scores import MASKED, UNITS, count_empty, score, summarise

SHAPE, SPACING = (8, 6, 6), (0.5, 0.5, 2.0)


def bar(first: int, last: int) -> np.ndarray:
    label = np.zeros(SHAPE, bool)
    label[first : last + 1, 2, 2] = True
    return label


def left_half() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[:4] = True
    return mask


def test_every_score_of_two_bars_one_voxel_apart():
    predicted = bar(2, 7)
    predicted[0, 5, 5] = True  # a speck inside the mask
    whole, inside = score("sub-1", bar(1, 6), predicted, left_half(), SPACING)
    assert (whole["region"], inside["region"]) == ("all", "intracranial")
    assert whole["dice"] == 2 * 5 / 13
    # x = 1 is 1 from the prediction; x = 7 is 1 from the label, the speck sqrt(1 + 9 + 9) from (1, 2, 2).
    speck, speck_mm = np.sqrt(19), np.sqrt(0.5**2 + 1.5**2 + 6**2)
    assert whole["truth_to_predicted_voxels"] == 1 / 6
    assert whole["predicted_to_truth_voxels"] == pytest.approx((1 + speck) / 6)
    assert whole["bavd_voxels"] == pytest.approx((2 + speck) / 12)
    assert whole["avd_voxels"] == pytest.approx((1 / 6 + (1 + speck) / 7) / 2)
    assert whole["bavd_mm"] == pytest.approx((1 + speck_mm) / 12)
    assert whole["predicted_to_truth_mm"] == pytest.approx((0.5 + speck_mm) / 6)
    # Seven distances sorted: 0 0 0 0 0 1 speck; the 95th percentile stands at 0.95 * 6 = 5.7.
    assert whole["hd95_voxels"] == pytest.approx(1 + 0.7 * (speck - 1))
    assert (whole["precision"], whole["recall"]) == (5 / 7, 5 / 6)
    assert (whole["truth_components"], whole["predicted_components"], whole["component_error"]) == (1, 2, 1)
    assert whole["centreline_dice"] == pytest.approx(2 * (5 / 7) * (5 / 6) / (5 / 7 + 5 / 6))
    # False positives: the speck inside, x = 7 outside, voxels of 0.5 mm3.
    assert (whole["false_positive_inside_mm3"], whole["false_positive_outside_mm3"]) == (0.5, 0.5)
    # Inside both sides are cut to x < 4: label 1 2 3, prediction 2 3 and the speck.
    assert inside["dice"] == 2 * 2 / 6
    assert not set(MASKED) & set(inside)


def test_masks_of_integers_score_as_of_bool():
    truth = np.zeros((8, 8, 8), bool)
    predicted, mask = truth.copy(), truth.copy()
    truth[2:4, 2, 2], predicted[3:6, 2, 2], mask[:4] = True, True, True
    expected = score("a", truth, predicted, mask, (0.5, 0.5, 0.7))
    assert expected[0]["false_positive_outside_mm3"] > 0
    for dtype in (np.uint8, np.int64, np.float32):
        integers = (side.astype(dtype) for side in (truth, predicted, mask))
        assert score("a", *integers, (0.5, 0.5, 0.7)) == expected


def test_every_score_has_a_unit():
    whole, inside = score("sub-1", bar(1, 6), bar(2, 7), left_half(), SPACING)
    counts = {"truth_voxels", "predicted_voxels", "truth_components", "predicted_components"}
    assert set(whole) == {"subject", "region", *counts, *UNITS}
    assert set(inside) == set(whole) - set(MASKED)


def test_without_a_mask_there_is_no_inside():
    (whole,) = score("sub-1", bar(1, 6), bar(2, 7), None, SPACING)
    assert not set(MASKED) & set(whole)
    assert not set(MASKED) & set(summarise([whole])["all"])


def test_empty_sides_are_defined_and_counted():
    nothing = np.zeros(SHAPE, bool)
    missed = score("sub-1", bar(1, 6), nothing, left_half(), SPACING)
    both = score("sub-2", nothing, nothing, left_half(), SPACING)
    outside = score("sub-3", bar(5, 7), bar(5, 7), left_half(), SPACING)
    diagonal, diagonal_mm = np.sqrt(8**2 + 6**2 + 6**2), 13.0  # 4, 3 and 12 mm
    for metric, unit in UNITS.items():
        if metric in MASKED or metric == "component_error":
            continue
        expected = {"voxel": diagonal, "mm": diagonal_mm, "1": 0.0}[unit]
        assert missed[0][metric] == pytest.approx(expected), metric
        assert both[0][metric] == (1.0 if unit == "1" else 0.0), metric
    assert missed[0]["component_error"] == 1 and both[0]["component_error"] == 0
    assert outside[1]["dice"] == 1.0 and outside[1]["truth_voxels"] == 0  # nothing inside on either side
    found = count_empty([*missed, *both, *outside])
    assert found["all"] == {"truth": 1, "predicted": 2}
    assert found["intracranial"] == {"truth": 2, "predicted": 3}


def test_the_summary_over_patients_by_hand():
    def entry(region: str, value: float) -> dict:
        return {"region": region} | {metric: value for metric in UNITS if region == "all" or metric not in MASKED}

    found = summarise([entry("all", 0.6), entry("all", 0.8), entry("all", 1.6), entry("intracranial", 0.5)])
    # Deviations -0.4, -0.2, 0.6: squares 0.16 + 0.04 + 0.36 = 0.56, over 2.
    expected = {"mean": pytest.approx(1.0), "sd": pytest.approx(0.28**0.5), "median": 0.8, "n": 3}
    assert found["all"]["dice"] == found["all"]["false_positive_inside_mm3"] == expected
    assert found["intracranial"]["bavd_mm"] == {"mean": 0.5, "sd": None, "median": 0.5, "n": 1}


def test_a_score_one_patient_lacks_is_refused():
    whole = score("sub-1", bar(1, 6), bar(2, 7), left_half(), SPACING)[0]
    bare = score("sub-2", bar(1, 6), bar(2, 7), None, SPACING)[0]
    with pytest.raises(KeyError):
        summarise([whole, bare])
