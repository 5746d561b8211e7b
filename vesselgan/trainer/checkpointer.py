"""When a GAN's checkpoints are written, what they hold beside the weights, and where the run stands in its data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vesselgan.config.compose import config_hash
from vesselgan.config.schema import Plan, TrainGan
from vesselgan.data.position import Position, batches_before
from vesselgan.data.sampler import steps_per_epoch
from vesselgan.formats.shards import ShardSet
from vesselgan.runtime import checkpoint
from vesselgan.runtime.distributed import World, run_on_rank0
from vesselgan.runtime.engine import Engine


@dataclass
class Checkpointer:
    """Saves one run; knows its position in the data, also after the batch size was changed."""

    config: TrainGan
    run_dir: Path
    world: World
    engines: dict[str, Engine]
    shards: ShardSet
    start: int
    """Generator steps done when the session starts."""
    first_batch: int
    """Global batches used up when the session starts."""
    save_s: float
    """Seconds that the last checkpoint took with all that is computed for it; an estimate before the first."""
    write_ms: float = 0.0
    """Milliseconds that writing the last checkpoint took."""
    max_steps: int | None = None
    """Generator steps after which the run ends sooner than configured; null: as configured."""

    @classmethod
    def from_state(
        cls,
        config: TrainGan,
        run_dir: Path,
        world: World,
        engines: dict[str, Engine],
        shards: ShardSet,
        state: dict[str, Any],
    ) -> "Checkpointer":
        """For a run that continues from `state`; raises CheckpointError when that lacks the position in the data."""
        step, train = state["step"], config.train
        first_batch = batches_before(state, batch_size=train.batch_size, num_records=len(shards))
        estimate_s = expected_bytes(engines, has_average=train.ema_decay is not None) / checkpoint.SLOW_DISK
        return cls(config, run_dir, world, engines, shards, step, first_batch, state.get("save_s") or estimate_s)

    @property
    def stop(self) -> int:
        """Generator steps of the whole run."""
        steps = num_generator_steps(self.config, len(self.shards), start=self.start, first_batch=self.first_batch)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def batches_after(self, step: int) -> int:
        """Global batches used up by `step` generator steps."""
        return self.first_batch + (step - self.start) * self.config.variant.n_critic

    def position_after(self, step: int) -> Position:
        train = self.config.train
        return Position.after(
            self.batches_after(step), seed=train.seed, batch_size=train.batch_size, num_records=len(self.shards)
        )

    def is_kept(self, step: int) -> bool:
        """Whether an epoch ends here whose checkpoint is never pruned."""
        every = self.config.train.save_every_epochs
        if every is None or step == self.start:
            return False
        return self.position_after(step).epoch // every > self.position_after(step - 1).epoch // every

    def is_due(self, step: int) -> bool:
        return step % self.config.train.checkpoint_every == 0 or step == self.stop or self.is_kept(step)

    def save(self, step: int, state: dict[str, Any], extra: dict[str, dict[str, Tensor]]) -> None:
        """Write a checkpoint with `state`, the geometry for `generate`, the position and the cost of a save."""
        position = {"step": step, "position": self.position_after(step).to_json(), "save_s": self.save_s}
        saved = checkpoint.save(
            self.run_dir,
            step,
            self.engines,
            self.data_state() | position | state,
            keep_last=self.config.train.keep_last,
            is_kept=self.is_kept(step),
            world=self.world,
            extra=extra,
        )
        self.write_ms = 1000 * saved.seconds

    def check_disk(self) -> str:
        """One line on the disk that the checkpoints need; raises ResourceError if it is short. A collective call."""
        train = self.config.train
        num_bytes = expected_bytes(self.engines, has_average=train.ema_decay is not None)
        num_epochs = self.position_after(self.stop).epoch
        num_kept = 0 if train.save_every_epochs is None else num_epochs // train.save_every_epochs
        return run_on_rank0(
            self.world,
            lambda: checkpoint.check_disk(self.run_dir, num_bytes, keep_last=train.keep_last, num_kept=num_kept),
        )

    def data_state(self) -> dict[str, Any]:
        """What every checkpoint holds of the training set, for `generate`.

        The affine is the first subject's. A private run stores its spacing alone: a patient's pose is personal data.
        """
        affine = next(iter(self.shards.subjects.values()))["affine"]
        if self.config.variant.dp is not None:
            affine = np.diag([*self.shards.spacing_mm, 1.0]).tolist()
        geometry = {
            "patch_shape": list(self.shards.patch_shape),
            "spacing_mm": list(self.shards.spacing_mm),
            "affine": affine,
            "upper_percentile": self.shards.manifest.upper_percentile,
        }
        return {"manifest": geometry, "config_hash": config_hash(self.config)}


def num_generator_steps(config: TrainGan | Plan, num_pairs: int, *, start: int = 0, first_batch: int = 0) -> int:
    """Generator steps of a whole run: max_steps, else epochs over the pairs. Raises UsageError when no batch fits.

    start, first_batch: steps done and global batches used up so far, for a run whose batch size was changed.
    """
    batches = config.train.epochs * steps_per_epoch(num_pairs, config.train.batch_size) - first_batch
    return config.train.max_steps or max(1, start + batches // config.variant.n_critic)


def expected_bytes(engines: dict[str, Engine], *, has_average: bool) -> int:
    """Bytes of one checkpoint: both engines, the generator's standing statistics and its moving average."""
    generator = engines["generator"].module
    extra = list(generator.buffers())
    if has_average:
        extra += generator.state_dict().values()
    return checkpoint.expected_bytes(engines.values(), extra)
