"""The training loop of GAN and U-Net: take a step, then let every part do what is due after it.

What is trained, and how, is in `steps`: training.gan for the GAN, segmentation.unet_trainer for the U-Net.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vesselgan.runtime.nonfinite import SkipLimit
from vesselgan.runtime.timing import Scalars
from vesselgan.trainer.checkpointer import Checkpointer
from vesselgan.trainer.logger import Logger
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session

Steps = Iterator[tuple[int, list[Scalars]]]
"""Takes a step and yields (steps done, metrics of each update, on the device); may end sooner than the schedule."""


class Follower(Protocol):
    """Takes note of every step: the generator's moving average, the count of noisy gradients."""

    def after_step(self, step: int) -> None: ...


class Observer(Protocol):
    """Looks at the networks now and then: sample images, validation. Its time counts as no step's."""

    def run_if_due(self, step: int) -> None: ...


@dataclass
class Trainer:
    """One session of a run."""

    session: Session
    schedule: Schedule
    steps: Steps
    skip_limit: SkipLimit
    logger: Logger
    checkpointer: Checkpointer
    followers: Sequence[Follower] = ()
    observers: Sequence[Observer] = ()

    def train(self) -> int:
        """Train until `steps` end or the run is asked to stop; returns the steps done. A collective call."""
        stopper, pace = self.session.stopper, self.session.pace
        step = self.schedule.start
        self.logger.start()
        pace.start()
        for step, updates in self.steps:
            self.logger.add(updates)
            for follower in self.followers:
                follower.after_step(step)
            self.skip_limit.check(step)
            self.logger.log_if_due(step)
            is_stopping = stopper.should_stop()
            with pace.pause():
                for observer in self.observers:
                    observer.run_if_due(step)
                self.checkpointer.save_if_due(step, is_stopping=is_stopping)
            if is_stopping and step < self.schedule.stop:
                self.session.log.line(stopper.write_requeue(step))
                break
        return step
