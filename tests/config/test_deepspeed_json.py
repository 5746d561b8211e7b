"""What a DeepSpeed JSON may say, and that a user reads which key it may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from vesselgan.config import deepspeed
from vesselgan.core.errors import UsageError


def read(folder: Path, settings: Any) -> dict[str, Any]:
    path = folder / "ds.json"
    path.write_text(json.dumps(settings))
    return deepspeed.read(str(path), "fp16")[1]


def fp16(**more: Any) -> dict[str, Any]:
    return {"fp16": {"enabled": True} | more, "zero_optimization": {"stage": 1}}


def bf16(**more: Any) -> dict[str, Any]:
    return {"bf16": {"enabled": True} | more, "zero_optimization": {"stage": 1}}


def zero(**more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 1} | more}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimizer": {"type": "Adam"}}, "optimizer"),
        ({"scheduler": {}}, "scheduler"),
        ({"train_batch_size": 8}, "train_batch_size"),
        ({"zero_optimisation": {"stage": 1}}, "`zero_optimization`"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast"),
        ({"wall_clock_breakdown": True}, "wall_clock_breakdown"),
        ({"data_types": {"buffer_dtype": "fp16"}}, "data_types"),
        (fp16() | bf16(), "fp16 and bf16"),
        ({"gradient_clipping": 1.0}, "gradient_clipping"),
        ({"gradient_clipping": True}, "gradient_clipping"),
        ({"amp": {"enabled": True}}, "amp"),
        ({"tensorboard": {"enabled": True}}, "tensorboard"),
        ({"communication_data_type": "fp16"}, "communication_data_type"),
        ({"prescale_gradients": True}, "prescale_gradients"),
        ({"gradient_predivide_factor": 2.0}, "gradient_predivide_factor"),
        ({"zero_allow_untested_optimizer": True}, "zero_allow_untested_optimizer"),
        (fp16(auto_cast=True), "fp16.auto_cast"),
        (fp16(fp16_master_weights_and_grads=True), "fp16_master_weights_and_grads"),
        (fp16(loss_scale=-1), "fp16.loss_scale=-1"),
        (fp16(loss_scale_window=0), "fp16.loss_scale_window=0"),
        (fp16(min_loss_scale=0), "fp16.min_loss_scale=0"),
        (fp16(hysteresis="two"), "fp16.hysteresis='two'"),
        (fp16(enabled="yes"), "fp16.enabled"),
        (fp16(loss_scale_windows=9), "`loss_scale_window`"),
        (bf16(check_grad_overflow=False), "bf16.check_grad_overflow"),
        (bf16(bf16_optimizer_states=True), "bf16_optimizer_states"),
        (bf16(bf16_master_weights_and_grads=True), "bf16_master_weights_and_grads"),
        (bf16(immediate_grad_update=True), "immediate_grad_update"),
        (zero(stage=3), "stage 3"),
        (zero(stage="1"), "stage"),
        (zero(stage=True), "stage"),
        (zero(offload_optimizer={"device": "cpu"}), "offload_optimizer"),
        (zero(offload_param={"device": "cpu"}), "offload_param"),
        (zero(elastic_checkpoint=True), "elastic_checkpoint"),
        (zero(compute_grad_norm=False), "compute_grad_norm"),
        (zero(reduce_bucket_size=0), "reduce_bucket_size"),
        (zero(overlap_comm=1), "overlap_comm"),
        ({"fp16": True}, "`fp16`"),
        (fp16(initial_scale_power=200), "fp16.initial_scale_power=200"),
        (fp16(loss_scale_window=1.5), "fp16.loss_scale_window=1.5"),
        (fp16(hysteresis=1.5), "fp16.hysteresis=1.5"),
        (fp16(hysteresis=None), "fp16.hysteresis=None"),
        (fp16(min_loss_scale=float("inf")), "fp16.min_loss_scale=inf"),
        (fp16(loss_scale=True), "fp16.loss_scale=True"),
        (fp16(consecutive_hysteresis="x"), "fp16.consecutive_hysteresis='x'"),
        (zero(reduce_bucket_size=0.5), "zero_optimization.reduce_bucket_size=0.5"),
        (zero(reduce_bucket_size=1e30), "zero_optimization.reduce_bucket_size=1e+30"),
        (zero(reduce_bucket_size=None), "zero_optimization.reduce_bucket_size=None"),
        ({"steps_per_print": 0}, "steps_per_print=0"),
        ({"steps_per_print": "x"}, "steps_per_print='x'"),
        ({"steps_per_print": {}}, "steps_per_print={}"),
        ({"comms_logger": 3}, "`comms_logger`"),
        ({"comms_logger": {"enabled": 1}}, "comms_logger.enabled=1"),
        ({"comms_logger": {"prof_ops": "all"}}, "comms_logger.prof_ops='all'"),
        ([1], "ds.json"),
    ],
)
def test_what_trains_something_else_is_refused(tmp_path, settings, named):
    with pytest.raises(UsageError) as error:
        read(tmp_path, settings)
    assert named in str(error.value) and "ds.json" in str(error.value)


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.json"
    path.write_text('{"fp16": {"loss_scale": 0}, "fp16": {"enabled": true}}')
    with pytest.raises(UsageError, match="duplicate keys: fp16"):
        deepspeed.read(str(path), "fp16")


def test_an_unreadable_json_is_named(tmp_path):
    with pytest.raises(UsageError, match="ds_fp64.json"):
        deepspeed.read("ds_fp64.json", "fp32")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match="bad.json"):
        deepspeed.read(str(tmp_path / "bad.json"), "fp32")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_clipping": 0.0, "wall_clock_breakdown": False, "zero_optimization": {"stage": 0}},
        fp16(loss_scale=0, initial_scale_power=16, loss_scale_window=500, hysteresis=2, min_loss_scale=1),
        fp16(loss_scale=128.0),
        bf16(check_grad_overflow=True),
        {"steps_per_print": 10, "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]}},
        zero(reduce_bucket_size=5e7, overlap_comm=True, contiguous_gradients=True),
    ],
)
def test_the_mechanics_are_free(tmp_path, settings):
    assert read(tmp_path, settings) == settings


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_json_receives_its_precision(precision):
    silent = {precision: {"loss_scale_window": 9}, "zero_optimization": {"stage": 1}}
    completed = deepspeed.complete("ds.json", silent, precision)
    assert completed[precision] == {"loss_scale_window": 9, "enabled": True}
    assert completed["gradient_clipping"] == 0.0  # left out, DeepSpeed clips at 1
    assert "enabled" not in silent[precision]


def test_what_is_switched_off_is_left_out():
    settings = {"optimizer": False, "amp": False} | fp16(auto_cast=False)
    deepspeed.check("ds.json", settings)
    assert deepspeed.complete("ds.json", settings, "fp16").keys() & settings.keys() == {"fp16", "zero_optimization"}
    assert deepspeed.complete("ds.json", settings, "fp16")["fp16"] == {"enabled": True}


@pytest.mark.parametrize("stated", [fp16(), bf16(), {"fp16": {"enabled": False}}])
def test_another_precision_is_refused(stated):
    other = "fp32" if deepspeed.stated_precision(stated) != "fp32" else "fp16"
    with pytest.raises(UsageError, match="unet.precision"):
        deepspeed.complete("ds.json", stated, other, key="unet.precision")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_without_zero_is_refused(precision):
    with pytest.raises(UsageError, match=f"ds.json: {precision} with ZeRO stage 0"):
        deepspeed.complete("ds.json", {"zero_optimization": {}}, precision)
