"""When a run's checkpoints are written, and what they hold beside weights and moments."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.profiler import record_function

from vesselgan.config.compose import config_hash
from vesselgan.core.atomic_io import describe
from vesselgan.core.console import log
from vesselgan.core.errors import ResourceError
from vesselgan.runtime import checkpoint
from vesselgan.runtime.distributed import run_on_rank0
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.timing import Phase
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session

MAX_FAILED_SAVES = 3
"""In a row: the run stops at the last of them (exit 6)."""


class CheckpointPart:
    """What one part of a run adds to every checkpoint; nothing, where it does not say otherwise."""

    num_protected = 0
    """Checkpoints that `protected` names at most."""

    def state(self) -> dict[str, Any]:
        """Keys of the checkpoint's JSON. A collective call."""
        return {}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by file stem, the same on every rank. A collective call."""
        return {}

    def expected_tensors(self) -> Iterable[Tensor]:
        """Tensors of as many bytes as `tensors` will have."""
        return ()

    def protected(self) -> list[str]:
        """Names of checkpoints that must not be pruned."""
        return []


@dataclass(frozen=True)
class FixedState(CheckpointPart):
    """What is the same in every checkpoint: facts of the training set, for whoever uses the weights."""

    content: dict[str, Any]

    def state(self) -> dict[str, Any]:
        return self.content


@dataclass
class Checkpointer:
    """Owns when checkpoints are written and which of them stay."""

    session: Session
    schedule: Schedule
    engines: Mapping[str, Engine]
    parts: Sequence[CheckpointPart]
    every: int
    """Steps between checkpoints."""
    keep_last: int
    """Checkpoints kept, of those that nothing else keeps."""
    save_every_epochs: int | None = None
    """Epochs between checkpoints that are kept for ever; None: none."""
    phase: Phase = record_function
    _num_failed: int = 0
    """Saves in a row."""

    def save_if_due(self, step: int, *, is_stopping: bool) -> None:
        """Save if a checkpoint is due after `step`, or the run stops there. A collective call.

        A save that fails for want of a resource is a warning, and the next is tried when it is due. ResourceError for
        the last of MAX_FAILED_SAVES in a row, and for a checkpoint that the run cannot do without: where it stops, or
        one that a part protects.
        """
        if not (is_stopping or self._is_epoch_kept(step) or self.schedule.is_due(step, self.every)):
            return
        try:
            self._save(step)
            self._num_failed = 0
        except ResourceError as error:
            self._num_failed += 1
            is_needed = is_stopping or step == self.schedule.stop or checkpoint.name_of(step) in self._protected()
            if is_needed or self._num_failed == MAX_FAILED_SAVES:
                raise
            if self.session.world.is_main:
                log.warning(f"training continues without a checkpoint of step {step}: {error}")
                log.warning(f"failed saves: {self._num_failed}; {MAX_FAILED_SAVES} in a row end the run")

    def check_disk(self) -> str:
        """One line on the disk that the checkpoints need; raises ResourceError if it is short. A collective call."""
        tensors = [tensor for part in self.parts for tensor in part.expected_tensors()]
        num_bytes = checkpoint.expected_bytes(self.engines.values(), tensors)
        pace = self.session.pace
        pace.save_s = pace.save_s or num_bytes / checkpoint.SLOW_DISK
        num_kept = sum(part.num_protected for part in self.parts)
        if self.save_every_epochs is not None:
            num_kept += self.schedule.epoch_after(self.schedule.stop) // self.save_every_epochs
        run_dir, keep_last = self.session.run_dir, self.keep_last
        return run_on_rank0(
            self.session.world,
            lambda: checkpoint.check_disk(run_dir, num_bytes, keep_last=keep_last, num_kept=num_kept),
        )

    def _save(self, step: int) -> None:
        session = self.session
        state: dict[str, Any] = {"step": step, "position": self.schedule.position_after(step)}
        state |= {"seconds": session.pace.seconds, "save_s": session.pace.save_s}
        state |= {"config_hash": config_hash(session.config)}
        for part in self.parts:
            state |= part.state()

        def flush_log() -> None:
            try:
                session.log.flush()
            except OSError as error:
                raise ResourceError(f"{session.run_dir}: the log of metrics: {describe(error)}") from error

        # A checkpoint must not be newer than the log before it.
        run_on_rank0(session.world, flush_log)
        with self.phase("checkpoint"):
            saved = checkpoint.save(
                session.run_dir,
                step,
                dict(self.engines),
                state,
                keep_last=self.keep_last,
                is_kept=self._is_epoch_kept(step),
                keep=self._protected(),
                world=session.world,
                extra={stem: tensors for part in self.parts for stem, tensors in part.tensors().items()},
            )
        session.pace.measure_save(saved.seconds)

    def _protected(self) -> list[str]:
        return [name for part in self.parts for name in part.protected()]

    def _is_epoch_kept(self, step: int) -> bool:
        """Whether an epoch ends with `step` whose checkpoint is kept for ever."""
        every = self.save_every_epochs
        if every is None or step == self.schedule.start:
            return False
        return self.schedule.epoch_after(step) // every > self.schedule.epoch_after(step - 1) // every
