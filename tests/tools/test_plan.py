"""Costs against the paper's Table 2, against arithmetic, and against a checkpoint that was really written."""

import dataclasses
import functools
import json

import pytest

from vesselgan.config.compose import compose, parse
from vesselgan.core.errors import UsageError
from vesselgan.tools import gpu_hours
from vesselgan.tools.plan import RankPlan, _configs, costs, plan


@functools.cache
def words(text: str):
    """The costs of these settings; full-size ones take seconds."""
    return costs(compose("plan", text.split()))


@pytest.mark.parametrize(
    ("variant", "total", "generator"),
    [
        ("gp", 144_697_347, 139_916_994),
        ("sn", 144_697_347, 139_916_994),
        ("sn_mp", 144_697_347, 139_916_994),
        ("c_sn_mp", 307_974_147, 289_123_714),
    ],
)
def test_parameters_are_those_of_table_2(variant, total, generator):
    facts = words(f"variant={variant}")
    assert facts["parameters"] == facts["parameters_generator"] + facts["parameters_critic"] == total
    assert facts["parameters_generator"] == generator


def test_json_holds_the_documented_keys_per_variant(capsys):
    words = ["variants=[gp,sn]", "patch_shape=[32,32,16]", "variant.width=8", "ranks=[1,2]", "step_seconds=2"]
    words += ["memory_gib=100", "train.save_every_epochs=25", "train.keep_last=2", "--json"]
    plan(parse("plan", None, words))
    gp, facts = json.loads(capsys.readouterr().out)["variants"]
    documented = " ".join(costs.__doc__.split())
    assert [key for key in facts if f"{key}" not in documented] == []
    assert [(fact["variant"], fact["width"]) for fact in (gp, facts)] == [("gp", 8), ("sn", 8)]
    # Two float32 numbers a parameter: the weight and Adam's second moment; buffers of these small networks come on top.
    assert facts["checkpoint_gib"] == pytest.approx(8 * facts["parameters"] / 2**30, rel=0.05)
    # 100 epochs, every 25th kept: four checkpoints more than the two newest and the one being written.
    assert facts["run_gib"] == pytest.approx((2 + 4 + 1) * facts["checkpoint_gib"])
    # 2,350 pairs are 587 batches of 4, a hundred times, two seconds each.
    assert facts["steps"] == 58_700 and facts["hours"] == pytest.approx(58_700 * 2 / 3600)
    assert [set(row) for row in facts["ranks"]] == [{field.name for field in dataclasses.fields(RankPlan)}] * 2
    one, two = facts["ranks"]
    assert (one["batch_per_rank"], two["batch_per_rank"]) == (4, 2) and two["peak_gib"] < one["peak_gib"]


def test_variants_take_the_project_and_what_one_of_them_reads(tmp_path):
    (tmp_path / "mine.yaml").write_text("train.batch_size: 8")
    words = [f"project={tmp_path / 'mine.yaml'}", "variants=[dpgan,sn]", "num_patients=40"]
    for config in _configs(parse("plan", None, words)):
        assert (config.train.batch_size, config.num_patients) == (8, 40)


def test_memory_is_ordered_as_in_table_2():
    peaks = {name: words(f"variant={name}")["ranks"][0]["peak_gib"] for name in ("gp", "sn", "sn_mp", "c_sn_mp")}
    # The paper's order: SN-MP below SN and GP, c-SN-MP above all.
    assert peaks["sn_mp"] < min(peaks["sn"], peaks["gp"]) < max(peaks["sn"], peaks["gp"]) < peaks["c_sn_mp"]


def test_a_step_takes_what_its_terms_take():
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


def test_hours_of_cards_are_operations_over_rates():
    facts = words("variant=sn_mp variant.width=64 patch_shape=[32,32,32]")
    # 0.08 of 312 TFLOP/s.
    hours = facts["steps"] * facts["tflop_per_step"] / (0.08 * 312) / 3600
    assert facts["hours_by_card"]["A100"] == pytest.approx(hours) and facts["hours_paper"] is None
    single = words("variant=c_sn_mp variant.precision=fp32 patch_shape=[32,32,32]")
    hours = single["steps"] * single["tflop_per_step"] / (0.115 * 15.7) / 3600
    assert single["hours_by_card"]["V100"] == pytest.approx(hours)
    without = words("variant=sn_mp variant.precision=bf16 variant.width=8 patch_shape=[32,32,32]")["hours_by_card"]
    assert [card for card, hours in without.items() if hours is None] == ["T4", "V100"]


def test_the_papers_hours_are_of_its_settings():
    def hours(*changes: str, steps: int = 58_700) -> int | None:
        return gpu_hours.paper_hours(compose("plan", ["variant=sn_mp", *changes]), steps=steps)

    assert hours() == 77 and hours(steps=10) is None
    for change in ("patch_shape=[32,32,32]", "train.batch_size=8", "variant.width=256", "variant.generator_norm=group"):
        assert hours(change) is None


def test_the_estimate_is_the_measured_h100():
    # 59 and 159 ms a step, over 58,700 steps; the shares have two digits.
    for name, step_s in (("sn_mp", 0.059), ("c_sn_mp", 0.159)):
        assert words(f"variant={name}")["hours_by_card"]["H100"] == pytest.approx(58_700 * step_s / 3600, rel=0.02)
    # A flow's 129 and 70 ms.
    for name, step_s in (("flow", 0.129), ("flow_mp", 0.070)):
        facts = words(f"variant={name} patch_shape=[64,64,32] train.batch_size=16")
        assert facts["hours_by_card"]["H100"] == pytest.approx(facts["steps"] * step_s / 3600, rel=0.03)


def test_a_measured_machine_gives_hours(capsys):
    settings = "variant=sn_mp variant.width=64 patch_shape=[32,32,32]".split()
    (elsewhere,) = costs(compose("plan", settings))["ranks"]  # a CPU's rates for a GPU
    (here,) = costs(compose("plan", [*settings, "machine.device=cuda"]))["ranks"]
    assert elsewhere["hours"] is None and here["hours"] == pytest.approx(58_700 * here["step"]["step_ms"] / 3.6e6)
    plan(parse("plan", None, settings))
    text = capsys.readouterr().out
    assert "~" in text and "0.08" in text and "paper, TITAN RTX" in text and "AMD EPYC" not in text


@pytest.mark.parametrize(
    ("settings", "memory_gib", "named"),
    [
        ("variant.penalty_reduction=batch", 0.0035, "; use train.batch_size=2"),
        ("variant.penalty_reduction=batch", 0.0001, "; use half precision"),
        ("variant.penalty_reduction=sample train.batch_size=5", 0.0035, "use 5 ranks or train.batch_size="),
    ],
)
def test_advice_is_what_training_takes(capsys, settings, memory_gib, named):
    """No ranks or micro-batches for a penalty over the whole batch; no ranks over which the batch does not divide."""
    text = f"variant=sn {settings} patch_shape=[32,32,16] variant.width=8 device=cpu memory_gib={memory_gib}"
    plan(parse("plan", None, text.split()))
    advice = capsys.readouterr().out.strip().splitlines()[-1]
    assert named in advice and ("batch_per_gpu" not in advice or "sample" in settings)


def test_what_cannot_run_is_not_planned():
    with pytest.raises(UsageError, match="variant.muon_learning_rate"):
        words("variant=flow zero_stage=1 patch_shape=[32,32,16] variant.width=8 device=cpu")
    with pytest.raises(UsageError, match="ZeRO"):
        words("variant=sn_mp zero_stage=0")
    with pytest.raises(UsageError, match="3 ranks"):
        words("variant=sn ranks=[3]")
