"""Reads the DeepSpeed JSON, checks it against what this DeepSpeed does, and adds the configuration's precision.

The JSON owns the mechanics (loss-scale schedule, ZeRO stage, buckets, communication); Hydra owns everything that is
science, so an optimizer or a scheduler in the JSON is an error. Its batch sizes are those of trainer.batch_plan.
"""

import copy
import difflib
import json
from pathlib import Path
from typing import Any

from vesselgan.config.overrides import config_dir
from vesselgan.config.training_schema import PRECISIONS
from vesselgan.core.errors import UsageError
from vesselgan.core.names import object_without_duplicates

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
# Allowed keys by section ("" is the top). Others would be ignored, are not tested here, or are below.
KNOWN: dict[str, tuple[str, ...]] = {
    "": (*BATCH_KEYS, "gradient_clipping", "fp16", "bf16", "zero_optimization", "steps_per_print", "comms_logger"),
    "fp16": (
        "enabled",
        "loss_scale",
        "initial_scale_power",
        "loss_scale_window",
        "hysteresis",
        "consecutive_hysteresis",
        "min_loss_scale",
    ),
    "bf16": ("enabled", "check_grad_overflow"),
    "zero_optimization": (
        "stage",
        "contiguous_gradients",
        "overlap_comm",
        "reduce_scatter",
        "reduce_bucket_size",
        "allgather_partitions",
        "allgather_bucket_size",
        "round_robin_gradients",
    ),
    "comms_logger": ("enabled", "prof_all", "prof_ops", "verbose", "debug"),
}
# Each was tried with DeepSpeed 0.19.8, or read in its source, and breaks a promise; the user reads the reason.
REFUSED = {
    "optimizer": "learning rates and betas belong to the variant's YAML (there are two networks): remove the section",
    "scheduler": "learning rates belong to the variant's YAML: remove the section",
    "torch_autocast": "its state is shared by all engines of a process, so two networks corrupt each other: use fp16",
    "amp": "needs apex and does not work with ZeRO: use fp16 or bf16",
    "wall_clock_breakdown": "asserts when a network is called outside the engine, as the penalty needs: remove it",
    "tensorboard": "the trainer writes TensorBoard itself: remove the section",
    "data_types": "buffers stay float32 (BatchNorm statistics overflow in half): remove the section",
    "communication_data_type": "gradients would be rounded to another type than the precision: remove it",
    "prescale_gradients": "half gradients would underflow before they are added: remove it",
    "gradient_predivide_factor": "half gradients would be rounded twice: remove it",
    "zero_allow_untested_optimizer": "the trainer's Adam is a tested one: remove it",
    "fp16.auto_cast": "it acts on the engine's own forward, which the penalty rules out: remove it",
    "fp16.fp16_master_weights_and_grads": "masters are float32: remove it",
    "bf16.bf16_master_weights_and_grads": "masters are float32: remove it",
    "bf16.bf16_optimizer_states": "Adam's moments are float32: remove it",
    "bf16.immediate_grad_update": "gradients are checked for NaN before any update: remove it",
    "zero_optimization.offload_optimizer": "it needs DeepSpeed's own Adam for CPUs: remove it",
    "zero_optimization.offload_param": "it needs ZeRO stage 3: remove it",
    "zero_optimization.elastic_checkpoint": "checkpoints are our own, for any number of ranks: remove it",
}


# Least of each. A floor of 0 would never be reached, and a window of 0 divides by it.
WHOLE_NUMBERS = {
    "steps_per_print": 1,
    "fp16.initial_scale_power": 0,
    "fp16.loss_scale_window": 1,
    "fp16.hysteresis": 1,
    "fp16.min_loss_scale": 1,
    "zero_optimization.reduce_bucket_size": 1,
    "zero_optimization.allgather_bucket_size": 1,
}
LARGEST_SCALE_POWER = 32
"""From a higher one a run would skip its first steps one after the other: half ends at 2^16."""
CHECKED_ALONE = ("fp16.loss_scale", "zero_optimization.stage", "comms_logger.prof_ops")
SWITCHES = {f"{section}.{key}" for section in KNOWN if section for key in KNOWN[section]}
SWITCHES -= {*WHOLE_NUMBERS, *CHECKED_ALONE}


def read(choice: str | None, precision: str) -> tuple[str, dict[str, Any]]:
    """(name, contents) of `--deepspeed_config`: a path, else a name in configs/deepspeed; None: ds_<precision>.json."""
    name = choice or f"ds_{precision}.json"
    path = Path(name)
    if not path.is_file():
        path = config_dir() / "deepspeed" / name
    if not path.is_file():
        names = ", ".join(sorted(file.name for file in (config_dir() / "deepspeed").glob("*.json")))
        raise UsageError(f"--deepspeed_config {name}: no such file, and not one of {names}")
    try:
        settings = json.loads(path.read_text(), object_pairs_hook=object_without_duplicates)
    except (OSError, ValueError) as error:
        raise UsageError(f"--deepspeed_config {name}: not readable as JSON ({error})") from error
    if not isinstance(settings, dict):
        raise UsageError(f"--deepspeed_config {name}: must hold one JSON object")
    check(name, settings)
    return name, settings


def complete(
    name: str, settings: dict[str, Any], precision: str, *, key: str = "variant.precision", command: str = ""
) -> dict[str, Any]:
    """`settings` with the section of `precision`, which the configuration's `key` owns, and without clipping.

    Raises UsageError if the JSON states another precision; the message has the `command` that agrees.
    """
    stated = stated_precision(settings)
    if stated not in (None, precision):
        raise UsageError(
            f"{name} states {stated}, but {key}={precision}; a command that agrees: "
            f"{command} --deepspeed_config {name} {key}={stated}"
        )
    if precision != "fp32" and settings.get("zero_optimization", {}).get("stage", 0) == 0:
        raise UsageError(
            f"{name}: {precision} with ZeRO stage 0: this DeepSpeed divides by a loss scale that it never "
            "applied (fp16) or keeps no partitioned float32 master to save (bf16); set zero_optimization.stage to 1"
        )
    completed = copy.deepcopy(settings)
    # What is false is off; DeepSpeed would read some of these sections all the same.
    for section, _, key in (dotted.rpartition(".") for dotted in REFUSED):
        (completed.get(section, {}) if section else completed).pop(key, None)
    if precision != "fp32":
        completed.setdefault(precision, {})["enabled"] = True
    # DeepSpeed alone would clip at 1.0.
    completed.setdefault("gradient_clipping", 0.0)
    completed.setdefault("steps_per_print", 10**9)
    return completed


def stated_precision(settings: dict[str, Any]) -> str | None:
    """The precision that the JSON states; None if it leaves it to the configuration."""
    enabled = {kind: settings[kind]["enabled"] for kind in PRECISIONS if "enabled" in settings.get(kind, {})}
    return next((kind for kind, is_enabled in enabled.items() if is_enabled), "fp32" if enabled else None)


def check(name: str, settings: dict[str, Any]) -> None:
    """Raises UsageError for settings that would train something else than they state."""
    for section, known in KNOWN.items():
        _check_keys(name, section, settings if section == "" else _section(name, settings, section), known)
    for key in BATCH_KEYS:
        if settings.get(key, "auto") != "auto":
            raise UsageError(f'{name}: `{key}` must be "auto": the YAML\'s batch_size and batch_per_gpu own it')
    if settings.get("gradient_clipping", 0.0) != 0:
        raise UsageError(
            f"{name}: gradient_clipping={settings['gradient_clipping']}: the paper clips nothing, and the penalty's "
            "gradient is large where it matters; set it to 0.0 (left out, DeepSpeed alone would clip at 1.0)"
        )
    _check_values(name, settings)


def _section(name: str, settings: dict[str, Any], section: str) -> dict[str, Any]:
    content = settings.get(section, {})
    if not isinstance(content, dict):
        raise UsageError(f"{name}: `{section}`: must be an object with keys such as {KNOWN[section][0]}")
    return content


def _check_keys(name: str, section: str, content: dict[str, Any], known: tuple[str, ...]) -> None:
    for key, value in content.items():
        dotted = f"{section}.{key}" if section else key
        if value is False and dotted in REFUSED:
            continue
        if dotted in REFUSED:
            raise UsageError(f"{name}: `{dotted}`: {REFUSED[dotted]}")
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}"
            raise UsageError(f"{name}: `{dotted}` is not a setting we know{hint}")


def _check_values(name: str, settings: dict[str, Any]) -> None:
    sections = [section for section in KNOWN if section in settings]
    given = settings | {f"{section}.{key}": value for section in sections for key, value in settings[section].items()}

    def refuse(key: str, allowed: str) -> None:
        raise UsageError(f"{name}: {key}={given[key]!r}: must be {allowed}")

    for key, value in given.items():
        if key in SWITCHES and not isinstance(value, bool):
            refuse(key, "true or false")
        if key in WHOLE_NUMBERS and (not _is_number(value, WHOLE_NUMBERS[key]) or value % 1 or value >= 2**63):
            refuse(key, f"a whole number from {WHOLE_NUMBERS[key]} on, of 64 bits")
    if given.get("fp16.initial_scale_power", 0) > LARGEST_SCALE_POWER:
        refuse("fp16.initial_scale_power", f"at most {LARGEST_SCALE_POWER}")
    if not _is_number(given.get("fp16.loss_scale", 0), 0):
        refuse("fp16.loss_scale", "a number from 0 on, 0 for a dynamic one")
    if not isinstance(given.get("comms_logger.prof_ops", []), list):
        refuse("comms_logger.prof_ops", "a list of operations")
    if given.get("fp16.enabled") and given.get("bf16.enabled"):
        raise UsageError(f"{name}: fp16 and bf16 are both enabled; choose one")
    if not given.get("bf16.check_grad_overflow", True):
        raise UsageError(f"{name}: bf16.check_grad_overflow=false: a NaN would go into the weights; remove it")
    stage = given.get("zero_optimization.stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        refuse("zero_optimization.stage", "0, 1 or 2")
    if stage == 3:
        raise UsageError(f"{name}: ZeRO stage 3 does not restore exactly from our checkpoints; use stage 1 or 2")


def _is_number(value: Any, least: int) -> bool:
    """Whether it is a finite number from `least` on."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < float("inf")
