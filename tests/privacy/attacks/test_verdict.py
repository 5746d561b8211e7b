"""The verdict and its sentence, from evidence of every kind."""

from dataclasses import replace

import numpy as np
import pytest

from vesselgan.privacy.attacks import copies, verdict
from vesselgan.privacy.attacks.copies import find_copies
from vesselgan.privacy.attacks.membership import Attack, Estimate, Level
from vesselgan.privacy.attacks.planted import found_of
from vesselgan.privacy.attacks.verdict import CANNOT_CONCLUDE, FAIL, PASS, Evidence, conclude, worst


def attack(auc: float, p: float) -> Attack:
    level = Level(100, 100, Estimate(auc, None, None, None), None)
    return Attack(level, level, p)


def evidence(below: int = 0, held_out: int = 800, share_found: float = 1.0) -> Evidence:
    value = np.full(2000, 1.0)
    value[:below] = 0.1
    people = [f"p{i % 12}" for i in range(held_out)]
    test = find_copies(value, np.full(held_out, 0.8), people, significance=0.05)
    planted = np.where(np.arange(100) < 100 * share_found, 0.1, 0.9)
    return Evidence(
        synthetic=2000, training=500, held_out=held_out, training_people=12, held_out_people=12, verbatim=0,
        is_shared=False, copies={"image": test}, attacks={("image", "distance"): attack(0.5, 0.5)},
        planted=[found_of("noisy", {"image": planted}, {"image": test})],
    )  # fmt: skip


def test_nothing_found_with_power_passes():
    found = conclude(evidence(below=1))
    assert (found.verdict, found.reasons) == (PASS, [])
    for part in ("2000 synthetic", "500 of 12 training", "800 of 12 held-out", "copies of 1% would be found"):
        assert part in found.sentence


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (evidence(below=40), "40 of 2000 synthetic patches are nearer by image to a training one"),
        (replace(evidence(), verbatim=1), "1 of 2000 synthetic patches are training patches"),
        (replace(evidence(), attacks={("label", "density"): attack(0.8, 1e-3)}), "density of the label tells training"),
        (replace(evidence(share_found=0.0), verbatim=1, training_people=2), "are training patches"),
    ],
)
def test_what_is_found_fails(changed, said):
    found = conclude(changed)
    assert found.verdict == FAIL and said in found.reasons[0] and said in found.sentence


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (replace(evidence(), is_shared=True), "in both splits"),
        (replace(evidence(), held_out_people=5), "5 held-out patients"),
        (replace(evidence(), training_people=3, held_out_people=2), "3 training and 2 held-out patients"),
        (evidence(share_found=0.3), "of 100 planted ones 30 lie nearer"),
        (evidence(held_out=50), "517 held-out patches (125 patients"),
    ],
)
def test_what_cannot_be_told_does_not_pass(changed, said):
    found = conclude(changed)
    assert found.verdict == CANNOT_CONCLUDE and said in found.reasons[0]


def test_the_worst_set_decides_for_all():
    good, bad = conclude(evidence()), conclude(replace(evidence(), verbatim=1))
    assert worst(good, [good]) == good
    found = worst(good, [good, bad])
    assert found.verdict == FAIL and found.reasons == [f"set 2: {bad.reasons[0]}"]
    assert found.reasons[0] in found.sentence and good.sentence in found.sentence


def test_many_attacks_raise_no_more_alarms():
    attacks = {("image", f"attack {i}"): attack(0.6, 0.02) for i in range(9)}
    assert conclude(replace(evidence(), attacks=attacks)).verdict == PASS  # Holm: 9 * 0.02


def test_a_network_that_tells_members_must_not_leave():
    assert "must not leave" in verdict.if_it_left("critic", attack(0.99, 1e-4))
    assert "was not seen to tell" in verdict.if_it_left("flow", attack(0.52, 0.3))


def test_bounds_are_those_of_the_rule_of_three():
    assert copies.at_most(0, 47) == pytest.approx(0.0617, abs=1e-4)
    assert copies.at_most(0, verdict.MIN_PEOPLE) == pytest.approx(0.259, abs=1e-3)
