"""What a run's privacy is said to be, by unit, and which checkpoints no run may go on from."""

import json
from dataclasses import replace

import pytest

from vesselgan.config.compose import compose, parse
from vesselgan.core.errors import CheckpointError, PrivacyError, UsageError
from vesselgan.privacy.accountant import (
    NOT_COVERED,
    Mechanism,
    PatientCounts,
    check_same_history,
    plan_mechanism,
    summary_lines,
    verdict,
)
from vesselgan.tools.plan import plan

PATIENTS = PatientCounts(num_patches=2350, num_patients=47, patches_per_patient=50)
PAPER = {"batch_size": 4, "generator_steps": 11_740}


def mechanism(*words_: str) -> tuple[Mechanism, int]:
    return plan_mechanism(compose("train_gan", ["variant=dpgan", *words_]).variant, PATIENTS, **PAPER)


def test_plan_tells_epsilon_for_both_units(capsys):
    plan(parse("plan", None, ["variant=dpgan", "--json"]))
    record = json.loads(capsys.readouterr().out)
    assert record["parameters"] == 70_026_243  # both networks at half width, as the authors' code has them
    # 100 epochs of 587 whole batches; 15.466 for 58,750 steps (constants of the accountant's tests).
    assert (record["private_steps"], record["steps"], record["unit"]) == (58_700, 11_740, "patch")
    assert record["delta"] == 1 / 2350 and record["noise_multiplier"] == 0.5
    assert record["epsilon_patch"] == pytest.approx(15.466, rel=1e-3)
    assert record["epsilon_patient"] > 50 * record["epsilon_patch"]
    spent = {row["noise_multiplier"]: row for row in record["paper_settings"]}
    assert spent[0.5]["claimed"] == 100 and spent[0.5]["counted"] == pytest.approx(69.17, rel=1e-3)
    assert spent[0.5]["spent"] == pytest.approx(647.5, rel=1e-3)
    assert spent[0.1]["ours"] == pytest.approx(1.1607e5, rel=1e-3)


def test_the_patient_as_unit():
    by_patient, steps = mechanism("variant.dp.unit=patient", "variant.dp.delta=1e-5", "variant.dp.noise_multiplier=2")
    assert (by_patient.num_units, by_patient.sample_rate) == (47, 4 / 47)
    # One patch of a patient is shown in one of 50 cases: rate 4 / 2350, as if patches were sampled.
    by_patch, _ = mechanism("variant.dp.delta=1e-5", "variant.dp.noise_multiplier=2")
    assert by_patient.epsilon("patch", steps) == pytest.approx(by_patch.epsilon("patch", steps))
    assert by_patient.epsilon("patch", steps) < by_patient.epsilon("patient", steps)


def test_a_delta_that_means_nothing_is_refused():
    with pytest.raises(PrivacyError, match="delta") as raised:
        mechanism("variant.dp.unit=patient")
    assert raised.value.exit_code == 7
    with pytest.raises(PrivacyError, match=r"variant\.dp\.delta"):
        mechanism("variant.dp.delta=0.002")
    with pytest.raises(PrivacyError, match="no differential privacy"):
        mechanism("variant.dp.delta=0.0005")  # above 1 / 2350


def test_what_protects_nobody_is_said():
    def text(*words: str) -> str:
        return "\n".join(summary_lines(*mechanism(*words)))

    assert "publishes one whole patch passes: no differential privacy" in text()  # delta 1 / 2350
    assert text("variant.dp.noise_multiplier=0.1", "variant.dp.delta=1e-5").count("no differential privacy") == 2
    quiet = replace(mechanism("variant.dp.noise_multiplier=10", "variant.dp.delta=1e-5")[0], patches_per_patient=1)
    assert "no differential privacy" not in "\n".join(summary_lines(quiet, 100))


def test_a_delta_below_prvs_rounding_has_rdp_alone():
    found = replace(mechanism("variant.dp.noise_multiplier=10")[0], delta=1e-30)
    assert found.epsilon_prv(58_700) is None and 0 < found.epsilon("patch", 58_700) < 10


def test_a_batch_of_everybody_is_refused():
    by_patient = compose("train_gan", ["variant=dpgan", "variant.dp.unit=patient", "variant.dp.delta=1e-5"]).variant
    with pytest.raises(UsageError, match="batch_size") as raised:
        plan_mechanism(by_patient, PATIENTS, batch_size=47, generator_steps=1)
    assert raised.value.exit_code == 2


def test_a_target_stops_before_it_is_passed():
    found, steps = mechanism("variant.dp.target_epsilon=8")
    assert steps % 5 == 0 and steps < 58_700
    assert found.epsilon("patch", steps) <= 8 < found.epsilon("patch", steps + 5)
    one = found.steps_within(8, 58_700)
    assert found.epsilon("patch", one) <= 8 < found.epsilon("patch", one + 1)
    with pytest.raises(PrivacyError):
        mechanism("variant.dp.target_epsilon=0.01")


def test_a_target_without_noise_finds_the_noise():
    found, steps = mechanism("variant.dp.target_epsilon=8", "variant.dp.noise_multiplier=null")
    assert steps == 58_700 and 7.9 < found.epsilon("patch", steps) <= 8


def test_words_name_units_and_what_is_uncovered():
    found, steps = mechanism()
    text = "\n".join(summary_lines(found, steps))
    assert "per patch: epsilon 15.46" in text and "PRV: 13.8" in text and "per patient: epsilon" in text
    assert all(what in text for what in NOT_COVERED) and found.to_json(steps)["not_covered"] == list(NOT_COVERED)
    assert verdict(9.9) == "" and verdict(10.0) != ""


def test_another_accountants_checkpoint_is_refused():
    found, _ = mechanism()
    mine = found.to_json(100)
    whole = {"step": 20, "privacy": mine}
    check_same_history(json.loads(json.dumps(whole)), mine)
    fewer = plan_mechanism(
        compose("train_gan", ["variant=dpgan"]).variant, replace(PATIENTS, num_patches=2300), **PAPER
    )[0]
    quieter, _ = mechanism("variant.dp.noise_multiplier=0.1")
    known, secret = (mine | {"is_key_secret": is_secret} for is_secret in (False, True))
    for state, now, named in (
        ({"step": 20}, mine, "accountant"),
        ({"step": 20, "privacy": found.to_json(95)}, mine, "95 .* 100"),
        (whole, fewer.to_json(100), "num_units: 2350 -> 2300"),
        (whole, quieter.to_json(100), r"noise_multiplier: 0\.5 -> 0\.1"),
        ({"step": 20, "privacy": known}, secret, "is_key_secret"),
    ):
        with pytest.raises(CheckpointError, match=named) as raised:
            check_same_history(state, now)
        assert raised.value.exit_code == 4
