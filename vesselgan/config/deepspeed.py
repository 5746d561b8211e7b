"""The DeepSpeed JSON: read, checked against what this DeepSpeed really does, and resolved into one dict per engine.

The JSON owns the mechanics (loss-scale schedule, ZeRO stage, buckets, communication); Hydra owns everything that is
science, so an optimizer or a scheduler in the JSON is an error. DeepSpeed itself does not understand "auto" for batch
sizes: only the resolved dict is ever given to it.
"""

import copy
import difflib
import json
from pathlib import Path
from typing import Any

from vesselgan.config.compose import config_dir
from vesselgan.errors import UsageError

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
SECTIONS = (
    *BATCH_KEYS,
    "gradient_clipping",
    "fp16",
    "bf16",
    "zero_optimization",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "steps_per_print",
    "zero_allow_untested_optimizer",
    "comms_logger",
)
# Each was tried with DeepSpeed 0.19.8 and found to break a promise; the text is the reason a user reads.
REFUSED = {
    "optimizer": "learning rates and betas belong to the variant's YAML (there are two players): remove the section",
    "scheduler": "learning rates belong to the variant's YAML: remove the section",
    "torch_autocast": "its state is shared by all engines of a process, so two networks corrupt each other: use fp16",
    "amp": "needs apex and does not work with ZeRO: use fp16 or bf16",
    "wall_clock_breakdown": "asserts when a network is called outside the engine, as the penalty needs: remove it",
    "tensorboard": "the trainer writes TensorBoard itself: remove the section",
    "data_types": "buffers stay float32 (BatchNorm statistics overflow in half): remove the section",
}


def read(choice: str | None, precision: str) -> tuple[str, dict[str, Any]]:
    """(name, contents) of `--deepspeed_config`: a path, else a name in configs/deepspeed; None: ds_<precision>.json."""
    name = choice or f"ds_{precision}.json"
    path = Path(name)
    if not path.is_file():
        path = config_dir() / "deepspeed" / name
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in (config_dir() / "deepspeed").glob("*.json")))
        raise UsageError(f"--deepspeed_config {name}: no such file, and not one of {there}")
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--deepspeed_config {name}: not readable as JSON ({error})") from error
    if not isinstance(settings, dict):
        raise UsageError(f"--deepspeed_config {name}: must hold one JSON object")
    check(name, settings)
    return name, settings


def precision_of(settings: dict[str, Any]) -> str:
    """`fp16`, `bf16` or `fp32`, as the JSON states it."""
    enabled = [kind for kind in ("fp16", "bf16") if settings.get(kind, {}).get("enabled", False)]
    return enabled[0] if enabled else "fp32"


def check(name: str, settings: dict[str, Any]) -> None:
    """UsageError for what would train something else than it says."""
    for key in settings:
        if settings[key] is False:
            continue
        if key in REFUSED:
            raise UsageError(f"{name}: `{key}`: {REFUSED[key]}")
        if key not in SECTIONS:
            near = difflib.get_close_matches(key, SECTIONS, 1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise UsageError(f"{name}: `{key}` is not a section we know{hint}")
    for key in BATCH_KEYS:
        if settings.get(key, "auto") != "auto":
            raise UsageError(f'{name}: `{key}` must be "auto": the YAML\'s batch_size and batch_per_gpu own it')
    if settings.get("fp16", {}).get("enabled") and settings.get("bf16", {}).get("enabled"):
        raise UsageError(f"{name}: fp16 and bf16 are both enabled; choose one")
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UsageError(f"{name}: zero_optimization.stage={stage}: must be 0, 1 or 2")
    if precision_of(settings) != "fp32" and stage == 0:
        raise UsageError(
            f"{name}: {precision_of(settings)} with ZeRO stage 0: this DeepSpeed divides by a loss scale that it never "
            "applied (fp16) or keeps no partitioned float32 master to save (bf16); set zero_optimization.stage to 1"
        )
    if stage == 3:
        raise UsageError(f"{name}: ZeRO stage 3 does not restore exactly from our checkpoints; use stage 1 or 2")


def resolve(
    settings: dict[str, Any], *, batch_size: int, batch_per_gpu: int | None, world_size: int, field: str = "train"
) -> dict[str, Any]:
    """`settings` with the batch sizes worked out, as one engine takes it; UsageError when they do not divide."""
    if batch_size % world_size:
        below = batch_size - batch_size % world_size or world_size
        raise UsageError(
            f"{field}.batch_size={batch_size} does not divide over {world_size} ranks; nearest that does: {below}"
        )
    per_rank = batch_size // world_size
    micro = batch_per_gpu or per_rank
    if per_rank % micro:
        step = world_size * micro
        raise UsageError(
            f"{field}.batch_size={batch_size} does not divide over {world_size} ranks x batch_per_gpu={micro}; "
            f"nearest that does: {max(step, batch_size - batch_size % step)}"
        )
    resolved = copy.deepcopy(settings)
    resolved["train_batch_size"] = batch_size
    resolved["train_micro_batch_size_per_gpu"] = micro
    resolved["gradient_accumulation_steps"] = per_rank // micro
    # DeepSpeed clips at 1.0 when nobody says otherwise, silently.
    resolved.setdefault("gradient_clipping", 0.0)
    resolved.setdefault("steps_per_print", 10**9)
    return resolved


def agree(name: str, settings: dict[str, Any], precision: str, *, command: str, key: str) -> None:
    """UsageError when the JSON's precision is not the one the configuration declares; names a command that agrees."""
    stated = precision_of(settings)
    if stated != precision:
        raise UsageError(
            f"{name} states {stated}, but {key}={precision}; a command that agrees: "
            f"{command} --deepspeed_config {name} {key}={stated}"
        )
