"""A session: one start of a training command, from the check of its settings to the end of its run or to a stop."""

import contextlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vesselgan.config import deepspeed
from vesselgan.config.compose import Command
from vesselgan.core import limits
from vesselgan.core.console import log
from vesselgan.core.errors import ResourceError
from vesselgan.formats import local_copy
from vesselgan.formats.run_changes import Change
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import ShardSet
from vesselgan.runtime import checkpoint, distributed
from vesselgan.runtime.distributed import World, run_on_all_ranks, run_on_rank0
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.launchers import ranks_from_environment
from vesselgan.runtime.precision import emulation_notice
from vesselgan.runtime.provenance import collect
from vesselgan.runtime.rank_failure import naming_lost_ranks
from vesselgan.trainer.run_log import RunLog, cut_metrics
from vesselgan.trainer.stopper import Stopper, remove_requeue

EngineSettings = dict[str, dict[str, Any]]
"""The DeepSpeed JSON of each network, complete and with batch sizes."""


class Session:
    """This rank's session: the run directory, the ranks, the log, requests to stop."""

    log: RunLog
    """Open from `begin` on, until `close` or the end of the `with` block."""

    def __init__(
        self,
        config: Any,
        run_dir: Path,
        world: World,
        deepspeed_json: dict[str, Any],
        stopper: Stopper,
        notice: str | None = None,
    ) -> None:
        """notice: the first line of its log."""
        self.config, self.run_dir, self.world, self.stopper = config, run_dir, world, stopper
        self.deepspeed_json = deepspeed_json
        """With the section of the configuration's precision."""
        self.pace = stopper.pace
        self.changes: list[Change] = []
        """Settings, and data, that are not the last session's."""
        self.state: dict[str, Any] = {"step": 0}
        """Of the checkpoint that the session starts from; of a new run the step alone."""
        self._lines: list[str] = [] if notice is None else [notice]

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        """Close the log of a run that failed; a full disk must not hide why."""
        if hasattr(self, "log"):
            with contextlib.suppress(OSError):
                self.log.close()

    def claim(
        self,
        command: str,
        settings: EngineSettings,
        inputs: dict[str, str],
        num_steps: int,
        *,
        max_minutes: float | None = None,
    ) -> bool:
        """Create the run directory or check it against the settings, and lock it; False if nothing is left to do.

        inputs: name -> hash of what the run reads. A collective call; raises the errors of `load_or_init` and
        `is_finished`, and ResourceError when another process trains there.
        """
        self._settings, self._inputs, run = settings, inputs, RunDir(self.run_dir)
        self.changes = run_on_rank0(
            self.world,
            lambda: run.load_or_init(
                *(command, self.config, settings),
                inputs=inputs,
                provenance=collect(),
                lock=lambda: self.stopper.lock(self.run_dir),
            ),
        )
        checkpoint_name = self.config.checkpoint
        if run_on_rank0(self.world, lambda: run.is_finished(num_steps, self.changes, checkpoint_name)):
            log.info(
                f"{self.run_dir}: finished already"
                + (f"; without a change, checkpoint={checkpoint_name} leads to the same end" if checkpoint_name else "")
            )
            return False
        max_restarts = self.config.runtime.max_restarts
        self._lines += self.stopper.start_watching(self.run_dir, max_minutes=max_minutes, max_restarts=max_restarts)
        return True

    def copy_to_node(self, sets: Sequence[ShardSet]) -> list[ShardSet]:
        """The sets as read from the node's own disk, or themselves without data.local_copy_dir. A collective call."""
        folder = self.config.data.local_copy_dir
        if folder is None:
            return list(sets)
        copies = run_on_all_ranks(self.world, lambda: [local_copy.copy_to_node(s.folder, folder) for s in sets])
        self._lines += [
            f"reads {shards.folder} from its copy {path}, "
            + ("found there" if seconds is None else f"copied and verified in {seconds:.1f} s")
            for shards, (path, seconds) in zip(sets, copies, strict=True)
        ]
        return [ShardSet(path) for path, _ in copies]

    def restore(
        self, engines: Mapping[str, Engine], accept: Callable[[dict[str, Any]], object] = lambda state: None
    ) -> bool:
        """Load the newest checkpoint, or the one that is named; False if there is none. A collective call.

        accept: called with its state before anything newer is set aside; may raise.
        """
        state = checkpoint.load(self.run_dir, self.config.checkpoint, dict(engines), world=self.world, accept=accept)
        if state is None:
            return False
        self.state = state
        self.pace.earlier_s, self.pace.save_s = state["seconds"], state["save_s"]
        return True

    def begin(self, lines: Sequence[str], *, weights_from: dict[str, Any] | None = None) -> None:
        """Record the session and open the log with `lines`, once nothing can refuse the run. A collective call.

        weights_from: the origin of a new run's weights; None: its seed.
        """
        step, run, threads = self.state["step"], RunDir(self.run_dir), torch.get_num_threads()
        entry = {"step": step, "ranks": self.world.size, "threads": threads, "inputs": self._inputs}
        entry |= {"weights_from": weights_from}

        def record() -> None:
            cut_metrics(self.run_dir, step)
            before = [session.get("threads", threads) for session in run.sessions()[-1:]]
            if step and self.world.device.type == "cpu" and before not in ([], [threads]):
                log.warning(
                    f"{self.run_dir}: resumes with {threads} threads, its last session had {before[0]}: the bytes "
                    f"differ from those of an uninterrupted run; for the same ones set OMP_NUM_THREADS={before[0]}"
                )
            run.record_session(self.config, self._settings, self.changes, entry, collect())

        run_on_rank0(self.world, record)
        self.log = RunLog(self.run_dir, is_main=self.world.is_main, resume_step=step)
        for line in [*lines, *self._lines, *(f"changed: {change}" for change in self.changes)]:
            self.log.line(line)

    def finish(self, facts: dict[str, Any], line: str) -> None:
        """Mark the run as finished; `facts` are what others read of it."""
        if self.world.is_main:
            RunDir(self.run_dir).mark_finished(facts)
            # A request to stop may have come in the last step.
            remove_requeue(self.run_dir)
        self.log.line(f"finished: {line}; {self.run_dir}")

    def close(self) -> None:
        """A collective call."""
        self.log.close()
        distributed.barrier()


def run_in_session(
    command: Command, run: Callable[[Session], None], *, run_dir: Path, program: str, precision: str, key: str
) -> None:
    """Call `run` on every rank; `key` is the setting that holds `precision`.

    Raises UsageError if the DeepSpeed JSON states another precision, ResourceError if the device is missing or a limit
    of the process would end the run.
    """
    runtime = command.config.runtime
    if ranks_from_environment(os.environ)[0] == 0:
        remove_requeue(run_dir)
    words = [word for word in command.overrides if not word.startswith(f"{key}=")]
    program = f"{program} {shlex.join(words)}".strip()
    name, raw = deepspeed.read(command.deepspeed_config, precision)
    deepspeed_json = deepspeed.complete(name, raw, precision, command=program, key=key)
    world = distributed.start(runtime.device, timeout_minutes=runtime.rank_timeout_minutes)
    distributed.select_kernels(deterministic=runtime.deterministic)
    try:
        with Stopper(world, rank_timeout_minutes=runtime.rank_timeout_minutes) as stopper:
            problems = limits.problems(uses_gpu=world.device.type == "cuda")
            run_on_all_ranks(world, lambda: _refuse(problems))
            # Inside: a launcher must not end the other ranks before they have named the lost one.
            with naming_lost_ranks(world):
                notice = emulation_notice(precision, world.device, program=program, key=key)
                with Session(command.config, run_dir, world, deepspeed_json, stopper, notice) as session:
                    run(session)
    finally:
        distributed.stop()


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ResourceError("; ".join(problems))
