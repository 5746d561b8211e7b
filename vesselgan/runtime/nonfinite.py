"""Counts of skipped steps per network; too many in a row end the run with exit code 5.

Skipped steps are normal in half precision while the loss scaler can still halve its scale. A skipped step is bad if the
loss itself is not finite, the scale is at its minimum, or there is no scaler.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vesselgan.core.errors import NumericError
from vesselgan.formats.run_dir import RunDir
from vesselgan.runtime.distributed import World


@dataclass
class NonFiniteCounter:
    """Bad steps in a row of one network, the same on every rank."""

    bad_in_a_row: int = 0
    reason: str = ""
    """`loss` or `gradient`: what was not finite in the last bad step."""

    def reset(self) -> None:
        """Call after an applied step."""
        self.bad_in_a_row = 0

    def count(self, *, is_loss_finite: bool, is_at_floor: bool) -> None:
        """Call after a skipped step; is_at_floor: its loss scale cannot be lowered."""
        if is_at_floor or not is_loss_finite:
            self.bad_in_a_row += 1
            self.reason = "gradient" if is_loss_finite else "loss"


class CountingEngine(Protocol):
    """The attributes of an engine that `SkipLimit` reads."""

    skips: NonFiniteCounter

    @property
    def loss_scale(self) -> float: ...

    @property
    def scaler(self) -> object | None: ...


@dataclass(frozen=True)
class SkipLimit:
    """Ends a run in which one network makes no step any more."""

    engines: Mapping[str, CountingEngine]
    limit: int
    setting: str
    """The name of `limit`."""
    run_dir: Path
    world: World

    def check(self, step: int) -> None:
        """NumericError on every rank, printed by rank 0, if a network has had `limit` bad steps in a row.

        Reads host numbers only.
        """
        for name, engine in self.engines.items():
            if engine.skips.bad_in_a_row >= self.limit:
                error = NumericError(self._message(name, engine, step))
                error.is_printed_elsewhere = not self.world.is_main
                raise error

    def _message(self, name: str, engine: CountingEngine, step: int) -> str:
        problem, advice = f"the {engine.skips.reason} was not finite", "lower learning rates, or precision fp32"
        if engine.skips.reason == "loss":
            advice = "`vesselgan check` finds bad volumes; else " + advice
        elif engine.scaler is not None:
            problem = f"the gradient overflowed half at the smallest loss scale, {engine.loss_scale:g}"
            advice = "precision bf16, which has float32's range (--deepspeed_config ds_bf16.json)"
        saved = RunDir(self.run_dir).checkpoints()
        last = f"the last good checkpoint is {saved[0]}" if saved else "there is no checkpoint yet"
        return (
            f"{self.run_dir}: {name}: {problem} in {self.limit} steps in a row, up to step {step} "
            f"({self.setting}={self.limit}); none of them changed anything, {last}. In a new run directory: {advice}"
        )
