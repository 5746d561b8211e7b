"""Attacks on membership: AUC and TPR by paper and pencil and by scikit-learn, intervals, controls, permutations."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vesselgan.core.errors import DataError
from vesselgan.privacy.attacks import membership
from vesselgan.privacy.attacks.membership import attack, distance_scores


def drawn(shift: float, *, members: int = 20, others: int = 12, patches: int = 15, seed: int = 0):
    """Scores, membership and patients; members' scores are `shift` higher."""
    rng = np.random.default_rng(seed)
    is_member = np.repeat(np.arange(members + others) < members, patches)
    patients = np.repeat([f"p{i}" for i in range(members + others)], patches)
    of_patient = np.repeat(0.2 * rng.normal(size=members + others), patches)
    return rng.normal(size=len(patients)) + of_patient + shift * is_member, is_member, patients.tolist()


def test_auc_is_scikit_learns():
    score, is_member, patients = drawn(0.7)
    score = score.round(1)  # with ties
    found = attack(score, is_member, patients, seed=0)
    assert found.sample.auc.value == pytest.approx(roc_auc_score(is_member, score))
    assert (found.sample.members, found.sample.others, found.patient.members, found.patient.others) == (
        300,
        180,
        20,
        12,
    )
    means = score.reshape(-1, 15).mean(1)
    assert found.patient.auc.value == pytest.approx(roc_auc_score(is_member[::15], means))


def test_tpr_is_counted_above_one_percent():
    # Of 200 others two may lie above: the threshold is 197, and half of the members pass it.
    score = np.concatenate([np.arange(200), np.tile([500, 100], 30)]).astype(float)
    is_member = np.arange(260) >= 200
    tpr = attack(score, is_member, [f"p{i}" for i in range(260)], seed=0).sample.tpr
    assert tpr.value == 0.5 and tpr.interval[0] < 0.5 < tpr.interval[1]
    assert tpr.control_others is not None and tpr.control_members is None
    few = attack(score[150:], is_member[150:], [f"p{i}" for i in range(110)], seed=0)
    assert few.sample.tpr is None


def test_members_are_told_and_controls_are_not():
    found = attack(*drawn(3.0), seed=0)
    assert found.sample.auc.value > 0.9 and found.patient.auc.value == 1.0 and found.p == pytest.approx(1e-4)
    assert found.sample.auc.interval[0] > 0.9
    for control in (found.sample.auc.control_members, found.sample.auc.control_others):
        assert control[0] < 0.5 < control[1] < 0.8


def test_p_is_uniform_where_nobody_is_told(monkeypatch):
    monkeypatch.setattr(membership, "NUM_PERMUTATIONS", 199)
    monkeypatch.setattr(membership, "NUM_DRAWS", 200)
    monkeypatch.setattr(membership, "NUM_DRAWS_TPR", 2)
    found = [attack(*drawn(0.0, patches=6, seed=seed), seed=seed) for seed in range(200)]
    alarms = np.mean([one.p <= 0.05 for one in found])
    assert alarms == pytest.approx(0.05, abs=0.062)  # four standard errors of 200
    inside = np.mean([one.sample.auc.interval[0] <= 0.5 <= one.sample.auc.interval[1] for one in found])
    assert inside > 0.85


def test_few_patches_of_members_are_no_alarm(monkeypatch):
    monkeypatch.setattr(membership, "NUM_PERMUTATIONS", 199)
    monkeypatch.setattr(membership, "NUM_DRAWS", 2)
    monkeypatch.setattr(membership, "NUM_DRAWS_TPR", 2)
    alarms = []
    for seed in range(200):
        score, is_member, patients = drawn(0.0, members=12, patches=60, seed=seed)
        kept = ~is_member | (np.arange(len(score)) % 60 < 3)
        alarms.append(attack(score[kept], is_member[kept], np.array(patients)[kept], seed=seed).p <= 0.05)
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.062)  # four standard errors of 200


def test_five_patients_prove_nothing():
    found = attack(*drawn(9.0, members=3, others=2), seed=0)
    assert found.sample.auc.value == 1.0 and found.p > 0.05  # one of ten splits
    assert found.sample.auc.interval is None and found.sample.auc.control_others is None


def test_equal_scores_tell_nothing():
    _, is_member, patients = drawn(0.0)
    found = attack(np.full(len(patients), 0.1), is_member, patients, seed=0)
    assert (found.sample.auc.value, found.patient.auc.value, found.p, found.sample.tpr.value) == (0.5, 0.5, 1.0, 0.0)


def test_scores_by_distance_are_higher_near_samples():
    to_synthetic = np.array([[0.1, 1.0], [0.9, 1.0]])
    to_reference, mask = np.array([[0.8, 0.1], [0.8, 0.9]]), np.array([[False, True], [False, True]])
    scores = distance_scores(to_synthetic, to_reference, mask)
    assert scores["distance"].tolist() == [-0.1, -0.9]
    assert scores["calibrated"] == pytest.approx([0.7, -0.1])
    assert scores["density"][0] == scores["density"][1]  # by the second nearest of each kind


def test_scores_that_fit_no_patients_are_refused():
    with pytest.raises(DataError, match="both sides"):
        attack(np.ones(3), np.ones(3, bool), ["a", "b", "c"], seed=0)
    with pytest.raises(DataError, match="some patches"):
        attack(np.ones(3), np.array([True, False, False]), ["a", "a", "c"], seed=0)
    with pytest.raises(DataError, match="finite"):
        attack(np.full(2, np.nan), np.array([True, False]), ["a", "b"], seed=0)
