"""The run directory: made before step 0, compared and locked while a run trains, marked when finished.

config.yaml, deepspeed_<network>.json    the settings that hold now
provenance.json                          what it was started with, its data, and all that it ever learned from
sessions.jsonl                           one line per start: step, ranks, versions, machine, changes
metrics.jsonl, log.txt, tensorboard/     what was logged
architecture.json                        the networks of a GAN, layer by layer
checkpoints/                             see formats.checkpoint_folder
finished.json                            the facts of a finished run
lock, stop, requeue                      the process that trains in it; requests to end and to start again
synthetic/                               where `generate` writes by default
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from vesselgan.config import compose
from vesselgan.core import locks
from vesselgan.core.atomic_io import PARTIAL, open_to_append, write_text
from vesselgan.core.errors import CheckpointError, DataError, UsageError, VesselganError, check_readable
from vesselgan.formats import checkpoint_folder
from vesselgan.formats.checkpoint_folder import CHECKPOINTS
from vesselgan.formats.run_changes import Change, check_changes, config_changes, engine_changes, input_changes

CONFIG, PROVENANCE, SESSIONS, FINISHED = "config.yaml", "provenance.json", "sessions.jsonl", "finished.json"
METRICS, LOG, EVENTS, ARCHITECTURE = "metrics.jsonl", "log.txt", "tensorboard", "architecture.json"
LOCK, STOP, REQUEUE = "lock", "stop", "requeue"
UNKNOWN = "unknown"
SIGNS_OF_LIFE = (METRICS, LOG, SESSIONS, CHECKPOINTS)


class RunDir:
    """A run directory, by its path. Raises DataError, naming the file, for one that is damaged."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def finished_file(self) -> Path:
        """Exists once the run is finished."""
        return self.path / FINISHED

    @property
    def synthetic(self) -> Path:
        """The folder that `generate` writes by default."""
        return self.path / "synthetic"

    @property
    def synthetic_volumes(self) -> Path:
        """The same for whole volumes."""
        return self.path / "synthetic_volumes"

    def exists(self) -> bool:
        return (self.path / CONFIG).is_file()

    def config(self, command: str) -> Any:
        """The configuration of `command` that the run has. Raises UsageError if it is a run of another command."""
        return compose.from_yaml(command, self.path / CONFIG)

    def settings(self) -> tuple[dict[str, Any], str]:
        """(the configuration as plain values, SHA-256 of its file); empty if there is no file."""
        import yaml

        path = self.path / CONFIG
        if not path.is_file():
            return {}, ""
        content = path.read_bytes()
        try:
            settings = compose.plain_yaml(content.decode("utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise _damaged(path, error) from error
        if not isinstance(settings, dict):
            raise _damaged(path, "it holds no settings")
        return settings, hashlib.sha256(content).hexdigest()

    def provenance(self) -> dict[str, Any]:
        """What the run was started with; empty if it is not recorded."""
        return self._json(PROVENANCE) or {}

    def trained_on(self) -> str | None:
        """Content hash of the shards that a GAN learned from; None if it is not recorded."""
        inputs = self.provenance().get("inputs")
        return inputs.get("gan/train") if isinstance(inputs, dict) else None

    def learned_from(self) -> set[str]:
        """Content hashes of all shards that the weights ever learned from, in whatever run; empty if not recorded.

        UNKNOWN stands for those of a run that does not record them.
        """
        record = self.provenance()
        inputs = record.get("inputs")
        earlier = record.get("learned_from", [])
        return {*earlier, *(inputs.values() if isinstance(inputs, dict) else ())}

    def finished(self) -> dict[str, Any] | None:
        """The facts of a finished run; None before its end."""
        return self._json(FINISHED)

    def architecture(self) -> dict[str, Any] | None:
        """The networks, layer by layer; None if they are not described."""
        return self._json(ARCHITECTURE)

    def requeue(self) -> dict[str, Any] | None:
        """What a stopped run asks of its next session, which may remove it at any time."""
        request = self._json(REQUEUE)
        if request is not None and not {"step", "reason"} <= request.keys():
            raise _damaged(self.path / REQUEUE, "it lacks step or reason")
        return request

    def sessions(self) -> list[dict[str, Any]]:
        """One entry per start, the newest last."""
        return _read_lines(self.path / SESSIONS)

    def metrics(self, tail_bytes: int | None = None) -> list[dict[str, Any]]:
        """The logged metrics by ascending step, or those in the file's last bytes; a step's later entry counts."""
        by_step = {int(entry["step"]): entry for entry in _read_lines(self.path / METRICS, tail_bytes, key="step")}
        return [by_step[step] for step in sorted(by_step)]

    def checkpoints(self) -> list[str]:
        """Names of the published checkpoints, newest first."""
        return checkpoint_folder.names_in(self.path / CHECKPOINTS)

    def checkpoint_age_s(self) -> float | None:
        """Seconds since the newest checkpoint was published; None without one."""
        names = self.checkpoints()
        return _age_s(self.path / CHECKPOINTS / names[0] / checkpoint_folder.MANIFEST) if names else None

    def finished_age_s(self) -> float:
        return _age_s(self.finished_file)

    def silent_s(self) -> float | None:
        """Seconds since the run wrote anything; None if it never did."""
        paths = [self.path / name for name in SIGNS_OF_LIFE]
        return min((_age_s(path) for path in paths if path.exists()), default=None)

    def holder(self) -> str | None:
        """The process that trains here; None if none is seen from this machine."""
        return locks.holder_of(self.path / LOCK)

    def last_holder(self) -> str | None:
        """The process that held the lock last, wherever it runs; None if there never was one."""
        try:
            return (self.path / LOCK).read_text().strip()
        except OSError:
            return None

    def acquire_lock(self) -> IO[str]:
        """Holds the run for this process until the returned file is closed. Raises ResourceError if another does."""
        return locks.acquire(self.path / LOCK)

    def has_begun(self) -> bool:
        """Whether training was ever started here; until then settings can still be corrected."""
        return any((self.path / name).exists() for name in (SESSIONS, CHECKPOINTS, FINISHED))

    def load_or_init(
        self,
        command: str,
        config: Any,
        engine_settings: dict[str, dict[str, Any]],
        *,
        inputs: dict[str, str],
        provenance: dict[str, Any],
        lock: Callable[[], object] = lambda: None,
    ) -> list[Change]:
        """Makes the directory, or compares it with the settings given; returns the changes, for `record_session`.

        inputs: name -> hash of what the run reads. provenance: versions, hardware and time. lock: called before
        anything is written, and refuses where another process is about to train. Raises CheckpointError for a changed
        setting that `config.allow_config_change` does not name, UsageError for a folder that is no run.
        """
        if self.exists() and self.has_begun():
            changes = config_changes(self.config(command), config)
            for network, settings in engine_settings.items():
                changes += engine_changes(network, self._required(_engine_file(network)), settings)
            learned_from = self._required(PROVENANCE).get("inputs")
            if not isinstance(learned_from, dict):
                raise _damaged(self.path / PROVENANCE, "it names no inputs", CheckpointError)
            changes += input_changes(learned_from, inputs)
            check_changes(self.path, changes, config.allow_config_change)
            return changes
        ours = {_engine_file(network) for network in engine_settings}
        ours |= {PROVENANCE, LOCK, "noise_key", "releases.json"}
        if (self.path / PROVENANCE).is_file():
            ours.add(CONFIG)
        if self.path.exists() and any(path.name.removesuffix(PARTIAL) not in ours for path in self.path.iterdir()):
            raise UsageError(f"{self.path}: is not empty and holds no run; name another --run_dir")
        lock()
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_engine_settings(engine_settings)
        write_json(self.path / PROVENANCE, provenance | {"inputs": inputs})
        # Last: its presence means that the directory is complete.
        write_text(self.path / CONFIG, compose.to_yaml(config))
        return []

    def record_session(
        self,
        config: Any,
        engine_settings: dict[str, dict[str, Any]],
        changes: list[Change],
        session: dict[str, Any],
        provenance: dict[str, Any],
    ) -> None:
        """Appends a session and makes changed settings the run's. Called once the checkpoint is loaded.

        session: step, ranks, inputs (as for `load_or_init`), and weights_from: where a new run has its weights from
        and what those learned from, null when from its seed. provenance: versions, hardware and time of the session.
        """
        entry = session | {"changes": [dataclasses.asdict(change) for change in changes]} | provenance
        with open_to_append(self.path / SESSIONS) as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        before = self._required(PROVENANCE)
        weights_from = session.get("weights_from") or {}
        learned_from = self.learned_from() | {*session["inputs"].values(), *weights_from.get("learned_from", [])}
        now = before | {"inputs": session["inputs"], "learned_from": sorted(learned_from)}
        if weights_from:
            now["weights_from"] = weights_from
        if now != before:
            write_json(self.path / PROVENANCE, now)
        if changes:
            self._write_engine_settings(engine_settings)
            write_text(self.path / CONFIG, compose.to_yaml(config))
        self.finished_file.unlink(missing_ok=True)

    def write_architecture(self, networks: dict[str, Any]) -> None:
        write_json(self.path / ARCHITECTURE, networks)

    def is_finished(self, num_steps: int, changes: list[Change], checkpoint: str | None = None) -> bool:
        """Whether nothing is left to do; allowed changes continue a finished run, from `checkpoint` if it is named.

        Raises UsageError for changes that leave no step to take, CheckpointError for a name that no checkpoint has.
        """
        if not self.finished_file.is_file():
            return False
        steps = self._required(FINISHED).get("steps", num_steps)
        if not isinstance(steps, int):
            raise _damaged(self.finished_file, f"steps is {steps!r}", CheckpointError)
        if checkpoint is not None and (path := checkpoint_folder.find_checkpoint(self.path, checkpoint, files=())):
            steps = checkpoint_folder.read_state(path)["step"]
        changed = [str(change) for change in changes if not change.is_free]
        if changed and steps >= num_steps:
            raise UsageError(
                f"{self.path}: finished, and of its {num_steps} steps none is left to take after step {steps} with "
                f"{'; '.join(changed)}: ask for more steps, or go back with checkpoint=NAME"
            )
        return not changed

    def mark_finished(self, facts: dict[str, Any]) -> None:
        write_json(self.finished_file, facts)

    def _json(self, name: str, kind: type[VesselganError] = DataError) -> dict[str, Any] | None:
        """The object in a file; None if there is no file. Raises `kind` for a damaged one."""
        path = self.path / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            check_readable(path, error)
            raise _damaged(path, error, kind) from error
        if not isinstance(value, dict):
            raise _damaged(path, "it holds no object", kind)
        return value

    def _required(self, name: str) -> dict[str, Any]:
        """The object in a file that a run cannot resume without. Raises CheckpointError."""
        if (value := self._json(name, CheckpointError)) is None:
            raise _damaged(self.path / name, "it is missing", CheckpointError)
        return value

    def _write_engine_settings(self, engine_settings: dict[str, dict[str, Any]]) -> None:
        for network, settings in engine_settings.items():
            write_json(self.path / _engine_file(network), settings)


def check_distinct(runs: Iterable[str | Path]) -> None:
    """Raises UsageError for two runs of one name, by which patches, results and pictures are known."""
    by_name: dict[str, Path] = {}
    for run in map(Path, runs):
        for name in {run.name, run.resolve().name}:
            if by_name.setdefault(name, run) is not run:
                raise UsageError(f"runs: {by_name[name]} and {run} are both called {name}; rename one, or leave it out")


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, published by rename."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _engine_file(network: str) -> str:
    return f"deepspeed_{network}.json"


def _damaged(path: Path, problem: object, kind: type[VesselganError] = DataError) -> VesselganError:
    return kind(f"{path}: not readable ({problem}); restore it from a backup, or start anew")


def _read_lines(path: Path, tail_bytes: int | None = None, key: str | None = None) -> list[dict[str, Any]]:
    """The JSON objects of a file, one per line, or of its last bytes; none if there is no file.

    Drops a last line that is half written, and a first one that `tail_bytes` cuts. Raises DataError for any other line
    that is no object, or lacks `key`.
    """
    try:
        with path.open("rb") as file:
            start = 0 if tail_bytes is None else max(0, file.seek(0, os.SEEK_END) - tail_bytes)
            file.seek(start)
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if key is not None:
                int(entry[key])
            entries.append({**entry})
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) or (number == 1 and start > 0):
                continue
            raise DataError(f"{path}: line {number} is damaged ({error}); remove the line") from error
    return entries


def _age_s(path: Path) -> float:
    """Seconds since the file changed; 0 where it has just been removed."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return 0.0
