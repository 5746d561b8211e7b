"""How a run is doing, read from its directory alone, also while it trains: nothing is written or loaded."""

import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vesselgan.config.compose import Command
from vesselgan.core.errors import UsageError
from vesselgan.core.names import on_one_line
from vesselgan.formats.checkpoint_folder import step_of
from vesselgan.formats.run_dir import RunDir
from vesselgan.report.runs import warnings_of

HEALTHY, STALLED, STOPPED, FINISHED = "healthy", "stalled", "stopped", "finished"
TAIL_BYTES = 2**20
"""Of the metrics: thousands of lines, so that warnings of a while ago are among them."""
SILENT_INTERVALS = 10
"""Intervals between two lines of metrics that may pass in silence before a run counts as stalled."""


def status(command: Command) -> None:
    """Print a run's status: a few lines, or with --json one object."""
    report = run_status(Path(command.config.run), stalled_minutes=command.config.stalled_minutes)
    print(json.dumps(report) if command.wants_json else format_status(report), flush=True)


def run_status(run_dir: Path, *, stalled_minutes: float) -> dict[str, Any]:
    """The run's state and what it is concluded from; ages in seconds. Raises UsageError where there is no run."""
    run = RunDir(run_dir)
    if not run.exists():
        raise UsageError(f"{run_dir}: holds no run; name a run directory, for example work/runs/NAME")
    metrics, requeue = run.metrics(TAIL_BYTES), run.requeue()
    last = metrics[-1] if metrics else {}
    step_ms = last.get("time/step_ms")
    step_ms = step_ms if isinstance(step_ms, int | float) and step_ms > 0 else None
    checkpoint = next(iter(run.checkpoints()), None)
    report = {
        "run": str(run_dir),
        # A run that was stopped, or stopped early, has saved steps that it did not log.
        "step": max(last.get("step", 0), step_of(checkpoint or "")),
        "step_ms": step_ms,
        "steps_per_second": 1000 / step_ms if step_ms else None,
        "checkpoint": checkpoint,
        "checkpoint_age_s": run.checkpoint_age_s(),
        "silent_s": run.silent_s(),
        "sessions": len(run.sessions()),
        "warnings": warnings_of(metrics),
        "requeue_requested": requeue is not None,
        "holder": run.holder(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    state, reason = _state(run, report, metrics, requeue, 60 * stalled_minutes)
    return report | {"state": state, "reason": reason}


def format_status(report: dict[str, Any]) -> str:
    """Two lines: the state and its reason; what the run has done. A further one for each kind of warning."""
    rate = f", {report['step_ms']:.0f} ms a step" if report["step_ms"] else ""
    checkpoint = "no checkpoint yet"
    if report["checkpoint"]:
        checkpoint = f"last checkpoint {report['checkpoint']}, {format_age(report['checkpoint_age_s'])} old"
    sessions = f"{report['sessions']} session{'s' if report['sessions'] != 1 else ''}"
    lines = [
        f"{report['state']}: {report['reason']}",
        f"step {report['step']}{rate}; {checkpoint}; {sessions}; {report['run']}",
        *(f"warning: {text}" for text in report["warnings"]),
    ]
    return "\n".join(map(on_one_line, lines))


def format_age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _state(
    run: RunDir,
    report: dict[str, Any],
    metrics: list[dict[str, Any]],
    requeue: dict[str, Any] | None,
    patience_s: float,
) -> tuple[str, str]:
    if run.finished_file.is_file():
        return FINISHED, f"{format_age(run.finished_age_s())} ago"
    silent_s, holder = report["silent_s"], report["holder"]
    if silent_s is None:
        return STOPPED, "it never started"
    if len(metrics) > 1 and report["step_ms"]:
        interval_s = (metrics[-1]["step"] - metrics[-2]["step"]) * report["step_ms"] / 1000
        patience_s = max(patience_s, SILENT_INTERVALS * interval_s)
    if holder is None and requeue is None and silent_s < patience_s:
        holder = _holder_elsewhere(run)
    if holder is not None:
        return (STALLED if silent_s > patience_s else HEALTHY), f"{format_age(silent_s)} silent, held by {holder}"
    if requeue is not None:
        return STOPPED, f"saved at step {requeue['step']} ({requeue['reason']}); the same command resumes it"
    return STOPPED, f"{format_age(silent_s)} ago without a requeue: it failed or was killed; see the job's output"


def _holder_elsewhere(run: RunDir) -> str | None:
    """Who took the lock last, if on another host: some file systems keep locks to each node."""
    holder = run.last_holder() or ""
    host = holder.partition(" on ")[2].partition(",")[0]
    return f"{holder} (its lock is not seen from here)" if host and host != socket.gethostname() else None
