"""One resumable stage of a pipeline: commands that run as processes, as a user would start them.

A stage is done when its marker names the same commands and the same content of its inputs, and its outputs exist: what
made the inputs, a stage or somebody else, does not count, nor when. Volumes are many and large: they are the same while
size and time of change are.
"""

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.core import processes
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.names import on_one_line
from vesselgan.formats.run_dir import RunDir

STOPPED = 75
"""Exit code where a training was asked to stop: nothing failed, and what follows must not start (EX_TEMPFAIL)."""
TITLE_WIDTH = 42
TAIL_LINES = 25
Lane = tuple[tuple[str, ...], ...]
"""Argument lists, run in order."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline."""

    name: str
    title: str
    commands: Lane
    """processes.PORT stands for a free port."""
    outputs: tuple[Path, ...] = ()
    """Exist when the stage is done."""
    threads: int | None = None
    """CPU threads of a process; None: its share of the cores."""
    beside: Lane = ()
    """A second lane, which runs at the same time."""
    inputs: tuple[Path, ...] = ()
    """Files that stand for all that is read, as manifests with hashes: the stage runs again when their content changes.
    """
    volumes: tuple[Path, ...] = ()
    """Files that are read and that a manifest among the inputs vouches for: the command, run again, compares them."""
    passed_on: tuple[Path, ...] = ()
    """Files that its commands leave for later ones of its own: it runs again when their content is another since, and
    its commands refuse what they made from others."""

    @property
    def lanes(self) -> list[Lane]:
        return [lane for lane in (self.commands, self.beside) if lane]

    def digests(self) -> list[str | None]:
        """Of the inputs, then size and time of change of the volumes; None for one that is missing."""
        stats = [path.stat() if path.is_file() else None for path in self.volumes]
        return [*_hashes(self.inputs), *(stat and f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)]


def _hashes(paths: Iterable[Path]) -> list[str | None]:
    return [sha256_of(path) if path.is_file() else None for path in paths]


def in_turns(commands: Sequence[tuple[str, ...]], at_once: int) -> tuple[Lane, Lane]:
    """The first lane and the one beside it; at_once: 1 or 2."""
    return (tuple(commands), ()) if at_once == 1 else (tuple(commands[::2]), tuple(commands[1::2]))


def stop_at_signals(remedy: str = "run the same command to resume") -> None:
    """From here on a signal ends this process with one line, and the commands and processes that it has started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, lambda number, frame: _stop(number, remedy))


def python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, *arguments)


def vesselgan(name: str, *arguments: str) -> tuple[str, ...]:
    """A command of vesselgan, by the name of its settings."""
    return python("-m", *module_command(name), *arguments)


def module_command(name: str) -> tuple[str, str]:
    """What follows `python -m`, or the launcher's --module."""
    return "vesselgan", name.replace("_", "-")


def quoted(value: object) -> str:
    """`value` as Hydra reads it back."""
    return str(value) if re.fullmatch(r"[\w./-]+", str(value)) else json.dumps(str(value), ensure_ascii=False)


def setting(key: str, value: object) -> str:
    return f"{key}={quoted(value)}"


def run_stage(home: Path, stage: Stage, label: str) -> bool:
    """Run `stage` unless it is done, and print one line; True if it ran.

    Commands write to home/logs/<stage>.log, those of the lane beside it to <stage>-2.log. If one fails, its error is
    shown and its exit code is raised as SystemExit; STOPPED if a training was asked to stop, which ends its lane.
    """
    marker = home / f"done/{stage.name}.json"
    lanes = stage.lanes
    logs = [home / f"logs/{stage.name}{ending}.log" for ending in ("", "-2")[: len(lanes)]]
    head = f"{label} {stage.title:{TITLE_WIDTH}}"
    if _is_done(stage, marker):
        print(f"{head} done already ({processes.clock(json.loads(marker.read_text())['seconds'])} then)", flush=True)
        return False
    marker.unlink(missing_ok=True)
    marker.parent.mkdir(parents=True, exist_ok=True)
    logs[0].parent.mkdir(parents=True, exist_ok=True)
    for log in logs:
        log.write_bytes(b"")
    inputs, started = stage.digests(), time.monotonic()  # as the commands find them
    print(head, end=" ", flush=True)
    codes = processes.run_commands(
        lanes, logs, threads=stage.threads, head=f"{head} ", has_more_to_do=unfinished_training
    )
    seconds = time.monotonic() - started
    if (failure := _failure(stage, lanes, codes, logs)) is not None:
        code, message = failure
        print(f"stopped after {processes.clock(seconds)}", flush=True)
        print(message, file=sys.stderr, flush=True)
        sys.exit(code)
    missing = [path for path in stage.outputs if not path.exists()]
    assert not missing, f"{stage.name} ended well and left no {missing}"
    partial = marker.with_suffix(".partial")
    record: dict[str, Any] = {"commands": sum(lanes, ()), "inputs": inputs, "passed_on": _hashes(stage.passed_on)}
    record["seconds"] = round(seconds, 1)
    partial.write_text(json.dumps(record, indent=1))
    os.replace(partial, marker)
    print(processes.clock(seconds), flush=True)
    return True


def _is_done(stage: Stage, marker: Path) -> bool:
    try:
        record = json.loads(marker.read_text())
        commands, inputs, _ = record["commands"], record["inputs"], processes.clock(record["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    is_same = commands == [list(command) for command in sum(stage.lanes, ())] and inputs == stage.digests()
    is_same &= record.get("passed_on", []) == _hashes(stage.passed_on)
    return is_same and all(path.exists() for path in stage.outputs)


def unfinished_training(command: Sequence[str]) -> Path | None:
    """The run directory of a training that has ended before its last step; None for any other command."""
    if "--run_dir" not in command:
        return None
    run = RunDir(command[command.index("--run_dir") + 1])
    return None if run.finished_file.is_file() else run.path


def stop_message(run_dir: Path) -> str:
    return f"{run_dir}: its training was stopped before its end and is saved; the same command resumes it"


def _failure(
    stage: Stage, lanes: Sequence[Lane], codes: Sequence[int | None], logs: Sequence[Path]
) -> tuple[int, str] | None:
    """The exit code and the message of a command that failed, else of trainings that were stopped; None if all ran."""
    for code, log in zip(codes, logs, strict=True):
        if code:
            return code if code > 0 else 128 - code, failure_message(stage.title, code, log)
    # Of a lane the first: those after it have not begun.
    unfinished = [next(filter(None, map(unfinished_training, lane)), None) for lane in lanes]
    stopped = [run_dir for run_dir in unfinished if run_dir is not None]
    return (STOPPED, "\n".join(map(stop_message, stopped))) if stopped else None


def failure_message(title: str, code: int, log: Path) -> str:
    """The command's own error lines, else the end of its output; and where the rest is."""
    text = log.read_text(errors="replace")
    error_lines = list(dict.fromkeys(line for line in re.split(r"[\r\n]+", text) if line.startswith("error: ")))
    shown = error_lines or text.splitlines()[-TAIL_LINES:]
    end = f"error: `{title}` ended with code {code}; all of its output is in {log}"
    return "\n".join([*map(on_one_line, shown), end])


def _stop(number: int, remedy: str) -> None:
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    print(f"\nstopped by {signal.Signals(number).name}; {remedy}", file=sys.stderr, flush=True)
    for process in multiprocessing.active_children():  # Python waits for them before it ends
        process.terminate()
    raise SystemExit(128 + number)
