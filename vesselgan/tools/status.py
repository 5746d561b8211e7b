"""How a run does, read from its directory alone, also while it goes on: nothing is held, written or loaded for it."""

import fcntl
import json
import os
import socket
import struct
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vesselgan.config.compose import Command
from vesselgan.core.errors import UsageError

HEALTHY, STALLED, STOPPED, FINISHED = "healthy", "stalled", "stopped", "finished"
TAIL_BYTES = 65536
SIGNS_OF_LIFE = ("metrics.jsonl", "log.txt", "sessions.jsonl", "checkpoints")
FLOCK = "hhqqi"
"""struct flock of 64-bit Linux: type, whence, start, length, process."""
INTERVALS = 10
"""Silent intervals, each as long as the last one between two lines of metrics, that are nothing to worry about."""


def status(command: Command) -> None:
    """Print what `look` finds: two lines, or with --json one object."""
    facts = look(Path(command.config.run), stalled_minutes=command.config.stalled_minutes)
    print(json.dumps(facts) if command.wants_json else in_words(facts), flush=True)


def look(run_dir: Path, *, stalled_minutes: float) -> dict[str, Any]:
    """The state of the run and what it is concluded from; ages in seconds. UsageError where there is no run."""
    if not (run_dir / "config.yaml").is_file():
        raise UsageError(f"{run_dir}: holds no run (no config.yaml); name a run directory, for example work/runs/NAME")
    lines = _lines(run_dir / "metrics.jsonl", TAIL_BYTES)
    last = lines[-1] if lines else {}
    starts = len(_lines(run_dir / "sessions.jsonl", None))
    checkpoint, requeue = _checkpoint(run_dir), _requeue(run_dir / "requeue")
    facts = {
        "run": str(run_dir),
        "step": last.get("step", 0),
        "step_ms": last.get("time/step_ms"),
        "steps_per_second": 1000 / last["time/step_ms"] if last.get("time/step_ms") else None,
        "checkpoint": checkpoint.name if checkpoint else None,
        "checkpoint_age_s": _age_s(checkpoint / "manifest.json") if checkpoint else None,
        "silent_s": _silent_s(run_dir),
        "starts": starts,
        "requeues": max(0, starts - 1),
        "is_requeue_asked": requeue is not None,
        "holder": _holder(run_dir / "lock"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    state, why = _state(run_dir, facts, lines, requeue, 60 * stalled_minutes)
    return facts | {"state": state, "why": why}


def in_words(facts: dict[str, Any]) -> str:
    """Two lines: the state and why; what the run has done."""
    rate = f", {facts['step_ms']:.0f} ms a step" if facts["step_ms"] else ""
    saved = "no checkpoint yet"
    if facts["checkpoint"]:
        saved = f"last checkpoint {facts['checkpoint']}, {age(facts['checkpoint_age_s'])} old"
    requeues = f"{facts['requeues']} requeue{'s' if facts['requeues'] != 1 else ''}"
    return f"{facts['state']}: {facts['why']}\nstep {facts['step']}{rate}; {saved}; {requeues}; {facts['run']}"


def age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _state(
    run_dir: Path, facts: dict[str, Any], lines: list[dict], requeue: dict[str, Any] | None, patience_s: float
) -> tuple[str, str]:
    if (run_dir / "finished.json").is_file():
        return FINISHED, f"{age(_age_s(run_dir / 'finished.json'))} ago"
    silent_s, holder = facts["silent_s"], facts["holder"]
    if silent_s is None:
        return STOPPED, "it never began"
    if len(lines) > 1 and facts["step_ms"]:
        interval_s = (lines[-1]["step"] - lines[-2]["step"]) * facts["step_ms"] / 1000
        patience_s = max(patience_s, INTERVALS * interval_s)
    if holder is None and requeue is None and silent_s < patience_s:
        holder = _elsewhere(run_dir / "lock")
    if holder is None:
        if requeue is not None:
            saved = f"saved at step {requeue['step']} ({requeue['reason']})"
            return STOPPED, f"{saved}; the same command goes on from there"
        ended = f"{age(silent_s)} ago, without a requeue: it failed or was killed; the job's output and log.txt say why"
        return STOPPED, ended
    heard = f"last heard of {age(silent_s)} ago, held by {holder}"
    return (STALLED if silent_s > patience_s else HEALTHY), heard


def _holder(lock: Path) -> str | None:
    """Who trains there, as it wrote into its lock; None when nobody is seen to hold it. Asked without taking it."""
    try:
        with lock.open() as file:
            words = file.read().strip() or "a process"
            asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))[0]
    except OSError:
        return None
    return words if kind != fcntl.F_UNLCK else None


def _elsewhere(lock: Path) -> str | None:
    """Who took the lock last, if on another host: some file systems keep locks to each node."""
    try:
        words = lock.read_text().strip()
    except OSError:
        return None
    host = words.partition(" on ")[2].partition(",")[0]
    return f"{words} (its lock is not seen from here)" if host and host != socket.gethostname() else None


def _requeue(marker: Path) -> dict[str, Any] | None:
    """What a run that stopped to go on later wrote; a new start may take it away at any time."""
    try:
        return json.loads(marker.read_text())
    except FileNotFoundError:
        return None


def _checkpoint(run_dir: Path) -> Path | None:
    """The newest one that is whole by its manifest's presence."""
    whole = sorted(path.parent for path in (run_dir / "checkpoints").glob("step_*[0-9]/manifest.json"))
    return whole[-1] if whole else None


def _lines(path: Path, num_bytes: int | None) -> list[dict]:
    """The JSON objects in the file's last bytes; lines that are being written, or were half written, left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - num_bytes) if num_bytes is not None else 0)
            found = []
            for line in file.read().split(b"\n"):
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
            return [line for line in found if isinstance(line, dict)]
    except FileNotFoundError:
        return []


def _silent_s(run_dir: Path) -> float | None:
    ages = [_age_s(run_dir / name) for name in SIGNS_OF_LIFE]
    return min((seconds for seconds in ages if seconds is not None), default=None)


def _age_s(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None
