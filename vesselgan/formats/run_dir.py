"""The run directory: made before step 0, compared and held while a run goes on, marked when finished.

config.yaml, deepspeed_<player>.json     the settings that hold now
provenance.json                          with what it was started, and the content of its data
sessions.jsonl                           one line per start: step, ranks, versions, machine, what was changed
lock                                     who trains in it
"""

import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vesselgan.config import compose
from vesselgan.core.atomic_io import PARTIAL, write_text
from vesselgan.core.errors import CheckpointError, UsageError

# Of the DeepSpeed JSON: where things lie and how they travel, not what is computed. Batches are the YAML's.
FREE_MECHANICS = ("zero_optimization", "communication_data_type", "steps_per_print", "comms_logger")
FREE_MECHANICS += ("zero_allow_untested_optimizer", "train_batch_size", "train_micro_batch_size_per_gpu")
FREE_MECHANICS += ("gradient_accumulation_steps",)


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


def prepare(
    run_dir: Path,
    verb: str,
    config: Any,
    engine_settings: dict[str, dict[str, Any]],
    *,
    inputs: dict[str, str],
    provenance: dict[str, Any],
) -> list[Change]:
    """Make `run_dir`, or compare it with what is asked: what differs, which `record_session` then writes down.

    inputs: name -> hash of what the run reads. provenance: versions, hardware and time. CheckpointError where a setting
    differs that `config.allow_config_change` does not name; UsageError for a folder that is no run.
    """
    stored = run_dir / "config.yaml"
    if stored.is_file() and has_begun(run_dir):
        changes = differences(compose.from_yaml(verb, stored), config)
        changes += _mechanics_changes(run_dir, engine_settings) + _input_changes(run_dir, inputs)
        _refuse(run_dir, changes, config.allow_config_change)
        return changes
    ours = {f"deepspeed_{player}.json" for player in engine_settings} | {"provenance.json", "lock"}
    ours |= {"noise_key", "releases.json"}
    if (run_dir / "provenance.json").is_file():
        ours.add("config.yaml")
    if run_dir.exists() and any(path.name.removesuffix(PARTIAL) not in ours for path in run_dir.iterdir()):
        raise UsageError(f"{run_dir}: is not empty and holds no run; name another --run_dir")
    run_dir.mkdir(parents=True, exist_ok=True)
    _write_mechanics(run_dir, engine_settings)
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
    """Write down a session and, where settings were changed, make them the run's. Once the checkpoint is loaded.

    session: step, ranks, inputs (as for `prepare`), and weights_from: where a new run has its weights from, null when
    from its seed. provenance: versions, hardware and time of this session.
    """
    told = session | {"changes": [dataclasses.asdict(change) for change in changes]} | provenance
    with (run_dir / "sessions.jsonl").open("a") as file:
        file.write(json.dumps(told) + "\n")
        file.flush()
        os.fsync(file.fileno())
    before = _read_json(run_dir / "provenance.json")
    now = before | {"inputs": session["inputs"]}
    if session.get("weights_from"):
        now["weights_from"] = session["weights_from"]
    if now != before:
        write_json(run_dir / "provenance.json", now)
    if changes:
        _write_mechanics(run_dir, engine_settings)
        write_text(run_dir / "config.yaml", compose.to_yaml(config))
    (run_dir / "finished.json").unlink(missing_ok=True)


def has_begun(run_dir: Path) -> bool:
    """Whether training was ever started here; until then settings can still be put right."""
    return any((run_dir / name).exists() for name in ("sessions.jsonl", "checkpoints", "finished.json"))


def sessions(run_dir: Path) -> int:
    """How often training was started here, this time included."""
    path = run_dir / "sessions.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def differences(before: Any, now: Any) -> list[Change]:
    """Every setting that differs between two configurations."""
    old, new = compose.flat(before), compose.flat(now)
    return [
        Change(key, old.get(key), value, compose.is_free_to_change(key))
        for key, value in new.items()
        if old.get(key) != value and key not in ("checkpoint", "allow_config_change", "run_dir")
    ]


def take(run_dir: Path) -> IO[str]:
    """Hold the run directory for this process until the returned file is closed. UsageError when another one does."""
    # Locked as a process, not as an open file: the reading workers of a killed run must not hold it on.
    file = open(run_dir / "lock", "a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UsageError(f"{run_dir}: {holder} trains in it; wait for its end, or name another --run_dir") from error
    except OSError:
        pass  # a file system without locks
    job = os.environ.get("SLURM_JOB_ID")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}{f', job {job}' if job else ''}\n")
    file.flush()
    return file


def is_finished(run_dir: Path, num_steps: int, changes: list[Change]) -> bool:
    """Whether there is nothing left to do; a finished run goes on where an allowed change leaves it steps to take."""
    path = run_dir / "finished.json"
    is_changed = any(not change.is_free for change in changes)
    return path.is_file() and not (is_changed and _read_json(path).get("steps", num_steps) < num_steps)


def finish(run_dir: Path, facts: dict[str, Any]) -> None:
    """ReleaseCounter the run as finished; `facts` go into finished.json."""
    write_json(run_dir / "finished.json", facts)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, published by rename."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _refuse(run_dir: Path, changes: list[Change], allowed: Collection[str]) -> None:
    """CheckpointError for what is neither free nor named, by itself or by its group."""
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


def _mechanics_changes(run_dir: Path, engine_settings: dict[str, dict[str, Any]]) -> list[Change]:
    changes = []
    for player, settings in engine_settings.items():
        path = run_dir / f"deepspeed_{player}.json"
        before = _read_json(path) if path.is_file() else settings
        for key in sorted(before.keys() | settings.keys()):
            if before.get(key) != settings.get(key):
                name = f"deepspeed.{player}.{key}"
                changes.append(Change(name, before.get(key), settings.get(key), key in FREE_MECHANICS))
    return changes


def _input_changes(run_dir: Path, inputs: dict[str, str]) -> list[Change]:
    """Data that is not what the run has learned from; a run older than this comparison has no hashes to compare."""
    before = _read_json(run_dir / "provenance.json").get("inputs")
    if before is None:
        return []
    keys = sorted(before.keys() | inputs.keys())
    changed = [key for key in keys if before.get(key) != inputs.get(key)]
    return [Change(f"content.{key}", before.get(key), inputs.get(key), is_free=False) for key in changed]


def _write_mechanics(run_dir: Path, engine_settings: dict[str, dict[str, Any]]) -> None:
    for player, settings in engine_settings.items():
        write_json(run_dir / f"deepspeed_{player}.json", settings)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({error}); restore it from a backup, or start anew") from error
