"""Whom patches lie near: ratios by paper and pencil, and the ranks of patients."""

import numpy as np
import pytest

from vesselgan.metrics.oriented_distances import UNRELATED
from vesselgan.privacy.attacks import neighbours
from vesselgan.privacy.attacks.neighbours import VERBATIM


def test_the_own_patient_never_counts():
    mask = neighbours.left_out(["a", "b", "a"], ["a", "b", None, "other"], seed=0)
    assert mask[:2].tolist() == [[True, False, True], [False, True, False]]
    assert all(row in ([True, False, True], [False, True, False]) for row in mask[2:].tolist())
    drawn = neighbours.left_out(["a", "b", "c"], [None] * 900, seed=0)
    assert drawn.sum(1).tolist() == [1] * 900 and drawn.sum(0).min() > 240


def test_a_ratio_is_of_nearest_distances():
    to_training, to_held_out = np.array([[0.5, 0.9], [1.0, 1.2]]), np.array([[0.2, 0.8], [0.3, 0.4]])
    mask = np.array([[True, False], [True, True]])
    ratio = neighbours.nearest_ratio(to_training, to_held_out, mask)
    assert ratio == pytest.approx([(0.5 + VERBATIM) / (0.8 + VERBATIM), (1 + VERBATIM) / (UNRELATED + VERBATIM)])


def test_patients_are_ranked_among_held_out_ones():
    found = neighbours.patient_similarities(
        np.array([0.1, 0.9, 1.0]), ["near", "near", "far"], np.array([0.5, 0.95]), ["x", "y"], seed=0
    )
    assert [(one.patient, one.patches, one.rank, one.of) for one in found] == [("near", 2, 1, 3), ("far", 1, 3, 3)]
    assert found[0].largest_similarity == pytest.approx(1 - 0.1**2 / 2)


def test_held_out_patients_show_no_more_patches():
    # With all of its 1000 patches the held-out patient would come first; with one patch in two it does.
    held_out = np.concatenate([np.full(500, 0.2), np.full(500, 1.2)])
    ranks = [
        neighbours.patient_similarities(np.array([0.5]), ["a"], held_out, ["x"] * 1000, seed=seed)[0].rank
        for seed in range(200)
    ]
    assert np.mean(ranks) == pytest.approx(1.5, abs=0.15)  # four standard errors
