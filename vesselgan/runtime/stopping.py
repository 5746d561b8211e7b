"""Requests to stop, from a signal, a stop file or the job's end, agreed on by all ranks and granted at a step boundary.

A signal only sets a flag. Schedulers lose exit codes and launchers die of signals, so a batch script asks by creating
`<run>/stop`, and reads from `<run>/requeue`, written after the save, whether the job should be queued again.
"""

import json
import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from vesselgan.files import write_text
from vesselgan.runtime.distributed import World

STOP_FILE = "stop"
REQUEUE_FILE = "requeue"
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
MARGIN = 1.5
"""Times the measured save and step that are kept free before the job's end: both vary."""


class StopRequests:
    """Listens while a run trains; as a context it gives the signals back.

    The ranks' flags are merged by a reduction over gloo that is started at one step and read at the next, so that no
    device is waited for.
    """

    def __init__(self, run_dir: Path, world: World, *, max_minutes: float | None) -> None:
        self._run_dir, self._world = run_dir, world
        self._reason = ""
        self._ends_at = _end_of_job(max_minutes)
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequests":
        if self._world.is_main:
            for name in (STOP_FILE, REQUEUE_FILE):
                (self._run_dir / name).unlink(missing_ok=True)
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._heed)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pending is not None and kind is None:
            self._pending[0].wait()

    @property
    def reason(self) -> str:
        """What was asked of this rank; empty on ranks that only heard of it from others."""
        return self._reason or "another rank was asked to stop"

    def are_granted(self, *, step_s: float, save_s: float) -> bool:
        """Whether to save and leave now, the same on every rank; called once per step by all of them.

        step_s, save_s: what a step and a save took last, seconds.
        """
        if not self._reason and self._world.is_main and (self._run_dir / STOP_FILE).exists():
            self._reason = f"{self._run_dir / STOP_FILE} was found"
        if not self._reason and time.time() + MARGIN * (step_s + save_s) > self._ends_at:
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

    def mark_for_requeue(self, step: int) -> None:
        """Write `<run>/requeue`; after the save, so that its presence means that nothing is lost."""
        if self._world.is_main:
            write_text(self._run_dir / REQUEUE_FILE, json.dumps({"step": step, "reason": self.reason}) + "\n")

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._reason:
            # The second Ctrl-C means now. Nothing half-written counts: files are published by rename.
            os._exit(128 + number)
        self._reason = f"signal {signal.Signals(number).name}"


def _end_of_job(max_minutes: float | None) -> float:
    """When the job ends, in seconds since the epoch: the nearer of Slurm's limit and max_minutes from now."""
    ends = [float(os.environ["SLURM_JOB_END_TIME"])] if "SLURM_JOB_END_TIME" in os.environ else []
    if max_minutes is not None:
        ends.append(time.time() + 60 * max_minutes)
    return min(ends, default=float("inf"))
