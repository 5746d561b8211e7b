"""The steps of a run and the batches that they take, which stay known when the batch size changes on a resume."""

from dataclasses import dataclass, replace
from typing import Any

from vesselgan.core.errors import CheckpointError, UsageError
from vesselgan.data.sampler import steps_per_epoch


@dataclass(frozen=True)
class Schedule:
    """Which steps a session takes, and where each stands in the data."""

    seed: int
    batch_size: int
    """Patches of a global batch."""
    num_patches: int
    """Of the training set."""
    batches_per_step: int
    """Global batches that a step uses up: n_critic of a GAN's, one of a U-Net's."""
    epochs: int | None
    """Passes over the patches; counts where max_steps is None."""
    max_steps: int | None
    limit: int | None = None
    """Steps after which the run ends sooner than configured; None: as configured."""
    start: int = 0
    """Steps done when the session starts."""
    first_batch: int = 0
    """Global batches used up when the session starts."""

    def resumed_from(self, state: dict[str, Any]) -> "Schedule":
        """The schedule of a session that starts at the checkpoint of `state`.

        Raises CheckpointError if the state lacks the position: nothing random could continue from it; UsageError if it
        has more steps than the whole run.
        """
        if state["step"] == 0:
            return self
        if "position" not in state:
            raise CheckpointError(
                f"the checkpoint of step {state['step']} lacks the position in the data, so no run can resume from it; "
                "start a new run with its weights: init_from=RUN"
            )
        position = state["position"]
        # Rounded down: a patch may repeat, none is left out.
        batch = min(position["patches"] // self.batch_size, self.batches_per_epoch)
        first_batch = position["epoch"] * self.batches_per_epoch + batch
        resumed = replace(self, start=state["step"], first_batch=first_batch)
        if resumed.start > resumed.stop:
            raise UsageError(
                f"max_steps, epochs or target_epsilon end the run after {resumed.stop} steps, and it has taken "
                f"{resumed.start}: ask for as many, or go back to an earlier checkpoint with checkpoint=NAME"
            )
        return resumed

    @property
    def batches_per_epoch(self) -> int:
        """Raises UsageError if the patches fill no batch."""
        return steps_per_epoch(self.num_patches, self.batch_size)

    @property
    def stop(self) -> int:
        """Steps of the whole run. Raises UsageError if the patches fill no batch."""
        batches = (self.epochs or 0) * self.batches_per_epoch - self.first_batch
        steps = self.max_steps or max(1, self.start + batches // self.batches_per_step)
        return steps if self.limit is None else min(steps, self.limit)

    @property
    def steps(self) -> range:
        """Of the session, counted from 0."""
        return range(self.start, self.stop)

    @property
    def batches(self) -> range:
        """Positions of the session's global batches, counted from the start of epoch 0."""
        return range(self.first_batch, self.batches_after(self.stop))

    def batches_after(self, step: int) -> int:
        """Global batches used up by `step` steps."""
        return self.first_batch + (step - self.start) * self.batches_per_step

    def epoch_after(self, step: int) -> int:
        """Whole epochs used up by `step` steps."""
        return self.batches_after(step) // self.batches_per_epoch

    def position_after(self, step: int) -> dict[str, int]:
        """For a checkpoint: so many patches of the permutation of (seed, epoch) are used up."""
        epoch, batch = divmod(self.batches_after(step), self.batches_per_epoch)
        return {"seed": self.seed, "epoch": epoch, "patches": batch * self.batch_size}

    def is_due(self, step: int, every: int) -> bool:
        """Whether what is done every so many steps is due after `step`; at the run's end all is."""
        return step % every == 0 or step == self.stop
