"""A run's position in its data, in epochs and samples, which stays valid when the batch size changes."""

from dataclasses import asdict, dataclass
from typing import Any

from vesselgan.core.errors import CheckpointError
from vesselgan.data.sampler import steps_per_epoch


@dataclass(frozen=True)
class Position:
    """After `samples` records of the permutation of (seed, epoch)."""

    seed: int
    epoch: int
    samples: int

    @classmethod
    def after(cls, batches: int, *, seed: int, batch_size: int, num_records: int) -> "Position":
        """The position after so many global batches from the start of epoch 0."""
        epoch, step = divmod(batches, steps_per_epoch(num_records, batch_size))
        return cls(seed, epoch, step * batch_size)

    def batches(self, *, batch_size: int, num_records: int) -> int:
        """Global batches of this size before the position, rounded down: a record may repeat, none is left out."""
        per_epoch = steps_per_epoch(num_records, batch_size)
        return self.epoch * per_epoch + min(self.samples // batch_size, per_epoch)

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def batches_before(state: dict[str, Any], *, batch_size: int, num_records: int) -> int:
    """Global batches that a checkpoint's run has used.

    Raises CheckpointError if the state lacks the position: nothing random could continue from it.
    """
    if state["step"] == 0:
        return 0
    if "position" not in state:
        raise CheckpointError(
            f"the checkpoint of step {state['step']} lacks the position in the data, so no run can resume from it; "
            "start a new run with its weights: init_from=RUN"
        )
    return Position(**state["position"]).batches(batch_size=batch_size, num_records=num_records)
