"""The settings and data in which a run and its continuation differ, and which of them must be allowed by name."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config import compose
from vesselgan.core.errors import CheckpointError

# Keys of the DeepSpeed JSON that say where things lie and how they travel, not what is computed. The YAML owns batches.
FREE_ENGINE_KEYS = (
    "zero_optimization",
    "communication_data_type",
    "steps_per_print",
    "comms_logger",
    "zero_allow_untested_optimizer",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)
ABSENT = "absent"
"""The value of a setting that only the other one has."""


@dataclass(frozen=True)
class Change:
    """A setting that differs between a run and its continuation."""

    key: str
    before: Any
    after: Any
    is_free: bool
    """It changes nothing that is computed, so nobody needs to allow it."""

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def check_changes(run_dir: Path, changes: list[Change], allowed: Collection[str]) -> None:
    """Raises CheckpointError for a change that is neither free nor named, by itself or by its group."""
    refused = [
        change
        for change in changes
        if not change.is_free and not any(change.key == key or change.key.startswith(f"{key}.") for key in allowed)
    ]
    if refused:
        keys = ",".join(change.key for change in refused)
        raise CheckpointError(
            f"{run_dir}: this run was started with other settings: {'; '.join(map(str, refused))}. Name another "
            f"--run_dir, or continue with the new ones from here: allow_config_change=[{keys}]"
        )


def config_changes(before: Any, now: Any) -> list[Change]:
    """A group that is switched on or off (`variant.dp`) changes with each of its settings."""
    return [
        Change(key, old, new, compose.is_free_to_change(key))
        for key, old, new in _differences(compose.flat(before), compose.flat(now))
        if key not in ("checkpoint", "allow_config_change", "run_dir")
    ]


def engine_changes(network: str, before: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """In the network's DeepSpeed JSON."""
    return [
        Change(f"deepspeed.{network}.{key}", old, new, key in FREE_ENGINE_KEYS)
        for key, old, new in _differences(before, now)
    ]


def input_changes(before: dict[str, str], now: dict[str, str]) -> list[Change]:
    """Data that is not what the run has learned from."""
    return [Change(f"content.{key}", old, new, is_free=False) for key, old, new in _differences(before, now)]


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value before, value now) where they differ; ABSENT, which is not None, for a key of the other alone."""
    values = ((key, before.get(key, ABSENT), now.get(key, ABSENT)) for key in now | before)
    return [(key, old, new) for key, old, new in values if old != new]
