"""Stops a run at a step boundary, on all ranks at once: on a signal, a stop file, or near the job's end.

A signal only sets a flag. Schedulers lose exit codes and launchers die of signals, so a batch script asks by creating
`<run>/stop`, and reads from `<run>/requeue`, written after the checkpoint, whether to queue the job again. A run that
failed (exit 2 to 7) leaves no `requeue`, and one that was started `runtime.max_restarts` times writes none.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

import torch
import torch.distributed as dist

from vesselgan.core.atomic_io import write_text
from vesselgan.formats.run_dir import REQUEUE, STOP, RunDir
from vesselgan.runtime.distributed import World, run_on_rank0
from vesselgan.trainer.progress import Pace

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MARGIN = 1.5
"""Times the measured save and steps that must fit before the job's end: both vary."""
SLURM_S = 10.0
"""Timeout of a question to Slurm's controller."""


class Stopper:
    """Listens for requests to stop; as a context manager it restores the signal handlers.

    The ranks' flags are merged by a reduction over gloo that starts at one step and is read at the next, so that no
    step waits for it.
    """

    def __init__(self, world: World, *, rank_timeout_minutes: float) -> None:
        self._world, self._run_dir = world, Path()
        self.pace = Pace()
        """What a step and a save take."""
        self._reason, self._interrupts, self._called_at = "", 0, time.perf_counter()
        self._ends_at, self._max_restarts = float("inf"), 0
        timeout = timedelta(minutes=rank_timeout_minutes)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world.size > 1 else None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._previous_handlers: dict[int, Any] = {}
        self._lock: IO[str] | None = None

    def __enter__(self) -> "Stopper":
        for number in SIGNALS:
            # Who started this process with a signal ignored, as nohup does, wants it ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._pending is not None and kind is None:
            self._pending[0].wait()
        if self._lock is not None:
            self._lock.close()

    def lock(self, run_dir: Path) -> None:
        """Hold `run_dir`, on rank 0. Raises ResourceError when another process trains there."""
        if self._lock is None:  # a second handle's end would give the lock up
            self._lock = RunDir(run_dir).acquire_lock()

    def start_watching(self, run_dir: Path, *, max_minutes: float | None, max_restarts: int) -> list[str]:
        """Lock `run_dir`, drop earlier requests, find out when the job ends; returns lines for the log.

        A collective call. Raises ResourceError when another process trains there.
        """
        self._run_dir, self._max_restarts = run_dir, max_restarts
        self._called_at = time.perf_counter()

        def lock_and_reset() -> list[str]:
            self.lock(run_dir)
            (run_dir / STOP).unlink(missing_ok=True)
            remove_requeue(run_dir)
            self._ends_at, line = end_of_job(max_minutes)
            return [line] if line else []

        return run_on_rank0(self._world, lock_and_reset)

    @property
    def reason(self) -> str:
        """Why this rank stops."""
        return self._reason or "another rank was asked to stop"

    def should_stop(self) -> bool:
        """Whether to save and leave now, the same on every rank; called once per step by all of them."""
        now = time.perf_counter()
        step_s, self._called_at = self.pace.step_s or now - self._called_at, now
        if not self._reason and self._world.is_main and (self._run_dir / STOP).exists():
            self._reason = f"{self._run_dir / STOP} was found"
        steps = 2 if self._group is not None else 1  # with several ranks the next step is taken before all know
        if not self._reason and time.time() + MARGIN * (steps * step_s + self.pace.save_s) > self._ends_at:
            self._reason = "the job's time is nearly up"
        if self._group is None:
            return bool(self._reason)
        is_asked = False
        if self._pending is not None:
            work, flags = self._pending
            work.wait()
            is_asked = bool(flags.item())
        flags = torch.tensor([float(bool(self._reason))])
        self._pending = (dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group, async_op=True), flags)
        return is_asked

    def write_requeue(self, step: int) -> str:
        """Write `<run>/requeue`, after the checkpoint, so that nothing is lost; returns a line for the log."""
        stopped = f"stopped at step {step}, saved: {self.reason}; "
        if not self._world.is_main:
            return stopped
        count = len(RunDir(self._run_dir).sessions())
        if count >= self._max_restarts:
            return stopped + (
                f"started {count} times (runtime.max_restarts={self._max_restarts}), so no requeue is written; the "
                "same command resumes from here with a higher limit"
            )
        request = {"step": step, "reason": self.reason, "sessions": count}
        write_text(self._run_dir / REQUEUE, json.dumps(request) + "\n")
        by_whom = "the job script requeues it, or " if "SLURM_JOB_ID" in os.environ else ""
        return stopped + f"{self._run_dir / REQUEUE} written: {by_whom}the same command resumes from here"

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            # The second Ctrl-C means now. Nothing half-written counts: files are published by rename.
            os._exit(128 + number)
        self._reason = self._reason or f"signal {signal.Signals(number).name}"


def remove_requeue(run_dir: Path) -> None:
    """From here on a failure must not be taken for a stop."""
    (run_dir / REQUEUE).unlink(missing_ok=True)


def end_of_job(max_minutes: float | None) -> tuple[float, str]:
    """(seconds since the epoch, a line for the log): the nearer of Slurm's limit and `max_minutes` from now."""
    ends_at, line = _end_in_slurm()
    if max_minutes is not None and time.time() + 60 * max_minutes < ends_at:
        ends_at, line = time.time() + 60 * max_minutes, f"stops by itself within {max_minutes:g} min (max_minutes)"
    return ends_at, line


def _end_in_slurm() -> tuple[float, str]:
    """When this Slurm job ends: from its environment, else from its controller; never an error."""
    with contextlib.suppress(KeyError, ValueError):
        return float(os.environ["SLURM_JOB_END_TIME"]), "stops by itself before SLURM_JOB_END_TIME"
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return float("inf"), ""
    unknown = "the job's end is unknown ({}): it stops on a signal, on the file RUN/stop, or with train.max_minutes"
    try:
        command = ["scontrol", "show", "job", "--oneliner", job]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SLURM_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return float("inf"), unknown.format(f"scontrol: {error}")
    ends = [word.removeprefix("EndTime=") for word in done.stdout.split() if word.startswith("EndTime=")]
    try:
        ends_at = datetime.fromisoformat(ends[0]).timestamp()
    except (IndexError, ValueError):
        return float("inf"), unknown.format(f"scontrol: {(done.stderr or str(ends)).strip()}")
    return ends_at, f"stops by itself before the job's end, {ends[0]}"
