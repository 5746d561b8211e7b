"""What a DeepSpeed JSON may say, and the reason a user reads for what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from vesselgan.config import deepspeed
from vesselgan.core.errors import UsageError

FP16 = {"enabled": True}


def read(folder: Path, settings: Any) -> dict[str, Any]:
    path = folder / "ds.json"
    path.write_text(json.dumps(settings))
    return deepspeed.read(str(path), "fp16")[1]


def fp16(**more: Any) -> dict[str, Any]:
    return {"fp16": FP16 | more, "zero_optimization": {"stage": 1}}


def bf16(**more: Any) -> dict[str, Any]:
    return {"bf16": {"enabled": True} | more, "zero_optimization": {"stage": 1}}


def zero(**more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 1} | more}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (bf16() | {"zero_optimization": {"stage": 0}}, "bf16 with ZeRO stage 0"),
        (fp16() | {"zero_optimization": {}}, "fp16 with ZeRO stage 0"),
        ({"gradient_clipping": 1.0}, "clips nothing"),
        ({"gradient_clipping": True}, "clips nothing"),
        ({"scheduler": {"type": "OneCycle"}}, "variant's YAML"),
        ({"amp": {"enabled": True}}, "apex"),
        ({"tensorboard": {"enabled": True}}, "writes TensorBoard itself"),
        ({"communication_data_type": "fp16"}, "rounded"),
        ({"prescale_gradients": True}, "underflow"),
        ({"gradient_predivide_factor": 2.0}, "rounded twice"),
        ({"zero_allow_untested_optimizer": True}, "tested one"),
        (fp16(auto_cast=True), "`fp16.auto_cast`"),
        (fp16(fp16_master_weights_and_grads=True), "masters are float32"),
        (fp16(loss_scale=-1), "fp16.loss_scale=-1"),
        (fp16(loss_scale_window=0), "fp16.loss_scale_window=0"),
        (fp16(min_loss_scale=0), "fp16.min_loss_scale=0"),
        (fp16(hysteresis="two"), "fp16.hysteresis='two'"),
        (fp16(enabled="yes"), "true or false"),
        (fp16(loss_scale_windows=9), "`loss_scale_window`"),
        (bf16(check_grad_overflow=False), "NaN would go into the weights"),
        (bf16(bf16_optimizer_states=True), "moments are float32"),
        (bf16(bf16_master_weights_and_grads=True), "masters are float32"),
        (bf16(immediate_grad_update=True), "before any update"),
        (zero(stage=3), "stage 3"),
        (zero(stage="1"), "must be 0, 1 or 2"),
        (zero(stage=True), "must be 0, 1 or 2"),
        (zero(offload_optimizer={"device": "cpu"}), "DeepSpeed's own Adam"),
        (zero(offload_param={"device": "cpu"}), "stage 3"),
        (zero(elastic_checkpoint=True), "our own"),
        (zero(compute_grad_norm=False), "not a setting we know"),
        (zero(reduce_bucket_size=0), "above 0"),
        (zero(overlap_comm=1), "true or false"),
        (zero(stage3_prefetch_bucket_size=1), "not a setting we know"),
        ({"fp16": True}, "must be an object"),
        ([1], "one JSON object"),
    ],
)
def test_what_would_train_something_else_is_refused_with_the_reason(tmp_path, settings, told):
    with pytest.raises(UsageError) as error:
        read(tmp_path, settings)
    assert told in str(error.value) and "ds.json" in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_clipping": 0.0, "wall_clock_breakdown": False, "zero_optimization": {"stage": 0}},
        fp16(loss_scale=0, initial_scale_power=16, loss_scale_window=500, hysteresis=2, min_loss_scale=1),
        fp16(loss_scale=128.0),
        bf16(check_grad_overflow=True),
        zero(reduce_bucket_size=5e7, overlap_comm=True, contiguous_gradients=True),
    ],
)
def test_the_mechanics_are_free(tmp_path, settings):
    assert read(tmp_path, settings) == settings


def test_a_json_without_clipping_never_lets_deepspeed_clip_at_one():
    assert deepspeed.resolve({}, batch_size=4, batch_per_gpu=None, world_size=1)["gradient_clipping"] == 0.0
