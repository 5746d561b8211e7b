"""How the patches of an optimizer step are divided: over ranks, then into micro-batches."""

from dataclasses import dataclass, replace
from typing import Any

from vesselgan.core.errors import UsageError


@dataclass(frozen=True)
class BatchPlan:
    """Patches of one optimizer step, computed where the configuration meets the number of ranks."""

    total: int
    """Of all ranks."""
    per_rank: int
    micro: int
    """In one forward and backward of a rank."""
    accumulation: int
    """Micro-batches of a rank in one update."""

    @classmethod
    def of(cls, batch_size: int, batch_per_gpu: int | None, *, ranks: int, group: str = "train") -> "BatchPlan":
        """batch_per_gpu: patches of a micro-batch; None: all of a rank. group: that of the two settings, for messages.

        Raises UsageError, naming the nearest size that fits, if the batch does not divide.
        """
        if batch_size % ranks:
            below = batch_size - batch_size % ranks or ranks
            raise UsageError(
                f"{group}.batch_size={batch_size} does not divide over {ranks} ranks; nearest that does: {below}"
            )
        per_rank = batch_size // ranks
        micro = batch_per_gpu or per_rank
        if per_rank % micro:
            step = ranks * micro
            raise UsageError(
                f"{group}.batch_size={batch_size} does not divide over {ranks} ranks x batch_per_gpu={micro}; "
                f"nearest that does: {max(step, batch_size - batch_size % step)}"
            )
        return cls(batch_size, per_rank, micro, per_rank // micro)

    @property
    def ranks(self) -> int:
        return self.total // self.per_rank

    def whole(self) -> "BatchPlan":
        """The same without micro-batches."""
        return replace(self, micro=self.per_rank, accumulation=1)

    def slice_of(self, rank: int) -> slice:
        """The patches of `rank` in the global batch."""
        return slice(rank * self.per_rank, (rank + 1) * self.per_rank)

    def resolve(self, deepspeed: dict[str, Any]) -> dict[str, Any]:
        """The DeepSpeed JSON with these sizes, as one engine takes it; DeepSpeed itself does not know "auto"."""
        return deepspeed | {
            "train_batch_size": self.total,
            "train_micro_batch_size_per_gpu": self.micro,
            "gradient_accumulation_steps": self.accumulation,
        }
