"""Logs the means of a run's metrics and whatever else is measured, every so many steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vesselgan.runtime.engine import Engine
from vesselgan.runtime.timing import Scalars
from vesselgan.trainer.checkpointer import CheckpointPart
from vesselgan.trainer.progress import Meter, Progress
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session


@dataclass(frozen=True)
class Interval:
    """The steps since the last log."""

    step: int
    """The last of them."""
    num_steps: int
    means: dict[str, float]
    """Over the steps and ranks."""


Source = Callable[[Interval], dict[str, float]]
"""Measures further metrics; called on every rank."""


class Logger(CheckpointPart):
    """Owns when a run's metrics are logged; a checkpoint holds the sums since the last time."""

    def __init__(
        self,
        session: Session,
        schedule: Schedule,
        *,
        every: int,
        summary: Sequence[str],
        sources: Sequence[Source],
    ) -> None:
        """summary: the metrics in the line on the screen."""
        self._session, self._schedule, self._every = session, schedule, every
        self._summary, self._sources = summary, sources
        self._meter, self._logged_step = Meter(session.state.get("meter")), schedule.start

    def start(self) -> None:
        """Call before the first step."""
        self._progress = Progress(self._session.log, start=self._schedule.start, stop=self._schedule.stop)

    def add(self, updates: list[Scalars]) -> None:
        """Take the metrics of a step's updates into the means."""
        for metrics in updates:
            self._meter.update(metrics)

    def log_if_due(self, step: int) -> None:
        self._progress.advance(step)
        if not self._schedule.is_due(step, self._every):
            return
        session, schedule = self._session, self._schedule
        interval = Interval(step, step - self._logged_step, self._meter.reduce(session.world))
        metrics = dict(interval.means)
        for source in self._sources:
            metrics |= source(interval)
        session.pace.measure_step(interval.num_steps)
        self._logged_step, step_s = step, session.pace.step_s
        patches_per_s = schedule.batch_size * schedule.batches_per_step / max(step_s, 1e-9)
        metrics |= {"time/step_ms": 1000 * step_s, "throughput/patches_per_s": patches_per_s}
        metrics["checkpoint/write_ms"] = 1000 * session.pace.write_s
        session.log.scalars(step, metrics)
        shown = "  ".join(f"{name} {metrics[name]:+.4f}" for name in self._summary if name in metrics)
        self._progress.show(step, shown or "every step skipped", step_s)

    def state(self) -> dict[str, Any]:
        return {"meter": self._meter.to_json(self._session.world)}


def loss_scales(engines: Mapping[str, Engine]) -> Source:
    """The loss scale of every engine, and how many steps it has skipped."""

    def read(interval: Interval) -> dict[str, float]:
        metrics = {}
        for name, engine in engines.items():
            metrics[f"amp/{name}_loss_scale"] = engine.loss_scale
            metrics[f"amp/{name}_skipped_total"] = float(engine.skipped_steps)
        return metrics

    return read
