"""Costs against the paper's Table 2, against arithmetic, and against a checkpoint that was really written."""

import dataclasses
import json

import pytest

from vesselgan.config.compose import compose, parse
from vesselgan.core.errors import UsageError
from vesselgan.tools.plan import Share, costs, plan


def words(text: str):
    return costs(compose("plan", text.split()))


@pytest.mark.parametrize(
    ("variant", "total", "generator"),
    [
        ("gp", 144_697_347, 139_916_994),
        ("sn", 144_697_347, 139_916_994),
        ("sn_mp", 144_697_347, 139_916_994),
        ("c_sn_mp", 307_974_147, 289_123_714),
        ("sn variant.width=256", 70_026_243, None),
    ],
)
def test_parameters_are_those_of_table_2(variant, total, generator):
    facts = words(f"variant={variant}")
    assert facts["parameters"] == facts["parameters_generator"] + facts["parameters_critic"] == total
    assert generator is None or facts["parameters_generator"] == generator


def test_json_is_one_object_with_the_documented_keys(capsys):
    plan(parse("plan", None, ["variant=c_sn_mp", "ranks=[1,2]", "step_seconds=2", "memory_gib=100", "--json"]))
    facts = json.loads(capsys.readouterr().out)
    documented = " ".join(costs.__doc__.split())
    assert [key for key in facts if f"{key}" not in documented] == []
    assert facts["parameters_generator"] == 289_123_714 and facts["parameters_critic"] == 18_850_433
    # Two float32 numbers a parameter: the weight and Adam's second moment. Two are kept, one more is being written.
    assert facts["checkpoint_gib"] == pytest.approx(2 * 4 * 307_974_147 / 2**30, rel=1e-3)
    assert facts["run_gib"] == pytest.approx(3 * facts["checkpoint_gib"])
    # 2,350 pairs are 587 batches of 4, a hundred times, two seconds each.
    assert facts["steps"] == 58_700 and facts["hours"] == pytest.approx(58_700 * 2 / 3600)
    assert [set(row) for row in facts["ranks"]] == [{field.name for field in dataclasses.fields(Share)}] * 2
    one, two = facts["ranks"]
    assert (one["batch_per_rank"], two["batch_per_rank"]) == (4, 2) and two["peak_gib"] < one["peak_gib"]
    assert (one["suggested_batch_per_rank"], one["suggested_batch_per_gpu"]) == (4, 4)


def test_half_precision_takes_less_memory_than_single_as_in_table_2():
    peaks = {name: words(f"variant={name}")["ranks"][0]["peak_gib"] for name in ("gp", "sn", "sn_mp", "c_sn_mp")}
    # The paper's order: SN-MP below SN and GP, c-SN-MP above all.
    assert peaks["sn_mp"] < min(peaks["sn"], peaks["gp"]) < max(peaks["sn"], peaks["gp"]) < peaks["c_sn_mp"]


def test_several_variants_share_the_other_settings(capsys):
    plan(parse("plan", None, ["variants=[gp,sn]", "patch_shape=[32,32,16]", "zero_stage=0", "variant.width=8"]))
    costs_of, times = capsys.readouterr().out.split("\n\n")
    header, *rows = costs_of.splitlines()
    assert "cpu_core" not in times and [row.split()[0] for row in times.splitlines()[2:]] == ["gp", "sn"]
    assert header.split()[:2] == ["variant", "precision"] and [row.split()[0] for row in rows] == ["gp", "sn"]
    plan(parse("plan", None, ["variants=[gp,sn]", "patch_shape=[32,32,16]", "variant.width=8", "--json"]))
    facts = json.loads(capsys.readouterr().out)["variants"]
    assert [(fact["variant"], fact["width"], fact["zero_stage"]) for fact in facts] == [("gp", 8, 0), ("sn", 8, 0)]


def test_kept_epochs_take_disk_too():
    # 100 epochs, every 25th kept: four more checkpoints than the two newest and the one being written.
    small = "variant=sn variant.width=8 patch_shape=[32,32,16]"
    facts = words(f"{small} train.save_every_epochs=25 train.keep_last=2")
    assert facts["run_gib"] == pytest.approx((2 + 4 + 1) * facts["checkpoint_gib"])


def test_a_step_takes_what_its_terms_take_and_more_ranks_than_patches_take_one_each():
    alone, four, many = words("variant=sn_mp variant.width=64 patch_shape=[32,32,32] ranks=[1,4,64]")["ranks"]
    machine = compose("plan", []).machine
    assert (alone["batch_size"], four["batch_size"], many["batch_size"]) == (4, 4, 64)
    for share in (alone, four, many):
        step = share["step"]
        busy = step["compute_ms"] + step["update_ms"] + step["traffic_ms"]
        assert step["step_ms"] == pytest.approx(max(busy, step["load_ms"], step["storage_ms"]))
        assert share["patches_per_s"] == pytest.approx(1e3 * share["batch_size"] / step["step_ms"])
    assert alone["traffic"]["gradient_bytes"] == alone["step"]["traffic_ms"] == 0 and alone["efficiency"] == 1
    # Gradients and weights in half, each once a step; a ring of 64 sends 63/64 of twice the one and once the other.
    sent = many["traffic"]
    assert sent["gradient_bytes"] == sent["weight_bytes"] == four["traffic"]["gradient_bytes"]
    link_ms = 1e3 * 63 / 64 * 3 * sent["gradient_bytes"] / 2**30 / machine.link_gib_per_s
    assert many["step"]["traffic_ms"] == pytest.approx(link_ms + sent["calls"] * machine.call_ms * 6)
    assert many["efficiency"] < four["efficiency"] <= 1


def test_what_cannot_run_is_not_planned():
    with pytest.raises(UsageError, match="ZeRO stage 0"):
        words("variant=sn_mp zero_stage=0")
    with pytest.raises(UsageError, match="does not divide over 3 ranks"):
        words("variant=sn ranks=[3]")
