"""When skipped steps are no longer an accident: counted per network, ended by exit code 5.

A step whose loss or gradient is not finite changes nothing. One such step is ordinary in half precision, where the loss
scale feels its way; many in a row are ordinary only while the scale can still be halved. A step without that way out
(the loss itself is not finite, or the scale is at its floor, or there is none) is a bad one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vesselgan.core.errors import NumericError
from vesselgan.runtime.distributed import World


@dataclass
class NonFiniteCounter:
    """Bad steps in a row of one network, the same on every rank."""

    bad_in_a_row: int = 0
    reason: str = ""
    """`loss` or `gradient`: what was not finite in the last one."""

    def none(self) -> None:
        """A step was applied."""
        self.bad_in_a_row = 0

    def one(self, *, is_loss_finite: bool, is_at_floor: bool) -> None:
        """A step was skipped; is_at_floor: there is no smaller loss scale than the one it was tried with."""
        if is_at_floor or not is_loss_finite:
            self.bad_in_a_row += 1
            self.reason = "gradient" if is_loss_finite else "loss"


class Guarded(Protocol):
    """What an engine tells of itself."""

    skips: NonFiniteCounter

    @property
    def loss_scale(self) -> float: ...

    @property
    def scaler(self) -> object | None: ...


def check_skipped_steps(
    engines: Mapping[str, Guarded], limit: int, *, field: str, step: int, run_dir: Path, world: World
) -> None:
    """NumericError on every rank, told by rank 0, when a network has had `limit` bad steps in a row by `step`.

    Host numbers only, no device is asked. field: the setting that holds `limit`.
    """
    for name, engine in engines.items():
        if engine.skips.bad_in_a_row < limit:
            continue
        what, advice = f"the {engine.skips.reason} was not finite", "lower learning rates, or precision fp32"
        if engine.skips.reason == "loss":
            advice = "`python -m data_prep.check` finds bad volumes; else " + advice
        elif engine.scaler is not None:
            what = f"the gradient overflowed half at the smallest loss scale, {engine.loss_scale:g}"
            advice = "precision bf16, which has float32's range (--deepspeed_config ds_bf16.json)"
        saved = sorted((run_dir / "checkpoints").glob("step_*[0-9]"))
        good = f"the last good checkpoint is {saved[-1].name}" if saved else "there is no checkpoint yet"
        error = NumericError(
            f"{run_dir}: {name}: {what} in {limit} steps in a row, up to step {step} ({field}={limit}); none of them "
            f"changed anything, {good}. In a new run directory: {advice}"
        )
        error.is_reported = not world.is_main
        raise error
