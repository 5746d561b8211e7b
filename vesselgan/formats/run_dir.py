"""The run directory: made before step 0, compared and held while a run goes on, marked when finished.

config.yaml, deepspeed_<network>.json    the settings that hold now
provenance.json                          what it was started with, and the content of its data
sessions.jsonl                           one line per start: step, ranks, versions, machine, changes
lock                                     the process that trains in it
"""

import dataclasses
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vesselgan.config import compose
from vesselgan.core import locks
from vesselgan.core.atomic_io import PARTIAL, write_text
from vesselgan.core.errors import CheckpointError, UsageError

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


def load_or_init(
    run_dir: Path,
    command: str,
    config: Any,
    engine_settings: dict[str, dict[str, Any]],
    *,
    inputs: dict[str, str],
    provenance: dict[str, Any],
) -> list[Change]:
    """Makes `run_dir`, or compares it with the settings given; returns the changes, for `record_session`.

    inputs: name -> hash of what the run reads. provenance: versions, hardware and time. Raises CheckpointError for a
    changed setting that `config.allow_config_change` does not name, UsageError for a folder that is no run.
    """
    stored = run_dir / "config.yaml"
    if stored.is_file() and has_begun(run_dir):
        changes = _config_changes(compose.from_yaml(command, stored), config)
        changes += _engine_changes(run_dir, engine_settings) + _input_changes(run_dir, inputs)
        check_changes(run_dir, changes, config.allow_config_change)
        return changes
    ours = {f"deepspeed_{network}.json" for network in engine_settings}
    ours |= {"provenance.json", "lock", "noise_key", "releases.json"}
    if (run_dir / "provenance.json").is_file():
        ours.add("config.yaml")
    if run_dir.exists() and any(path.name.removesuffix(PARTIAL) not in ours for path in run_dir.iterdir()):
        raise UsageError(f"{run_dir}: is not empty and holds no run; name another --run_dir")
    run_dir.mkdir(parents=True, exist_ok=True)
    _write_engine_settings(run_dir, engine_settings)
    write_json(run_dir / "provenance.json", provenance | {"inputs": inputs})
    # Last: its presence means that the directory is complete.
    write_text(stored, compose.to_yaml(config))
    return []


def record_session(
    run_dir: Path,
    config: Any,
    engine_settings: dict[str, dict[str, Any]],
    changes: list[Change],
    session: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Appends a session to sessions.jsonl and makes changed settings the run's. Called once the checkpoint is loaded.

    session: step, ranks, inputs (as for `load_or_init`), and weights_from: where a new run has its weights from, null
    when from its seed. provenance: versions, hardware and time of the session.
    """
    entry = session | {"changes": [dataclasses.asdict(change) for change in changes]} | provenance
    with (run_dir / "sessions.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
    before = _read_json(run_dir / "provenance.json")
    now = before | {"inputs": session["inputs"]}
    if session.get("weights_from"):
        now["weights_from"] = session["weights_from"]
    if now != before:
        write_json(run_dir / "provenance.json", now)
    if changes:
        _write_engine_settings(run_dir, engine_settings)
        write_text(run_dir / "config.yaml", compose.to_yaml(config))
    (run_dir / "finished.json").unlink(missing_ok=True)


def has_begun(run_dir: Path) -> bool:
    """Whether training was ever started here; until then settings can still be corrected."""
    return any((run_dir / name).exists() for name in ("sessions.jsonl", "checkpoints", "finished.json"))


def count_sessions(run_dir: Path) -> int:
    """How often training was started here, this time included."""
    path = run_dir / "sessions.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def acquire_lock(run_dir: Path) -> IO[str]:
    """Holds the run directory for this process until the returned file is closed. Raises UsageError if another does."""
    try:
        return locks.acquire(run_dir / "lock")
    except locks.HeldError as holder:
        raise UsageError(f"{run_dir}: {holder} trains in it; wait for its end, or name another --run_dir") from holder


def is_finished(run_dir: Path, num_steps: int, changes: list[Change]) -> bool:
    """Whether nothing is left to do; an allowed change that leaves steps to take continues a finished run."""
    path = run_dir / "finished.json"
    is_changed = any(not change.is_free for change in changes)
    return path.is_file() and not (is_changed and _read_json(path).get("steps", num_steps) < num_steps)


def mark_finished(run_dir: Path, facts: dict[str, Any]) -> None:
    """Marks the run as finished; `facts` are the content of finished.json."""
    write_json(run_dir / "finished.json", facts)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, published by rename."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


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
            f"--run_dir, or go on with the new ones from here: allow_config_change=[{keys}]"
        )


def _config_changes(before: Any, now: Any) -> list[Change]:
    old, new = compose.flat(before), compose.flat(now)
    return [
        Change(key, old.get(key), value, compose.is_free_to_change(key))
        for key, value in new.items()
        if old.get(key) != value and key not in ("checkpoint", "allow_config_change", "run_dir")
    ]


def _engine_changes(run_dir: Path, engine_settings: dict[str, dict[str, Any]]) -> list[Change]:
    changes = []
    for network, settings in engine_settings.items():
        path = run_dir / f"deepspeed_{network}.json"
        before = _read_json(path) if path.is_file() else settings
        for key in sorted(before.keys() | settings.keys()):
            if before.get(key) != settings.get(key):
                name = f"deepspeed.{network}.{key}"
                changes.append(Change(name, before.get(key), settings.get(key), key in FREE_ENGINE_KEYS))
    return changes


def _input_changes(run_dir: Path, inputs: dict[str, str]) -> list[Change]:
    """Data that is not what the run has learned from."""
    before = _read_json(run_dir / "provenance.json")["inputs"]
    keys = sorted(before.keys() | inputs.keys())
    changed = [key for key in keys if before.get(key) != inputs.get(key)]
    return [Change(f"content.{key}", before.get(key), inputs.get(key), is_free=False) for key in changed]


def _write_engine_settings(run_dir: Path, engine_settings: dict[str, dict[str, Any]]) -> None:
    for network, settings in engine_settings.items():
        write_json(run_dir / f"deepspeed_{network}.json", settings)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({error}); restore it from a backup, or start anew") from error
