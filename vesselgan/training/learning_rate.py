"""The learning rates of a run as a function of the step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vesselgan.runtime.engine import Engine
from vesselgan.trainer.schedule import Schedule


@dataclass
class LinearDecay:
    """Falls linearly to `final_share` of each engine's rate at the run's last step."""

    engines: Mapping[str, Engine]
    schedule: Schedule
    final_share: float
    _rates: dict[str, list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self._rates = {
            name: [group["lr"] for group in e.inner_optimizer.param_groups] for name, e in self.engines.items()
        }
        self.after_step(self.schedule.start)

    def after_step(self, step: int) -> None:
        """Set the rates of the step after `step` steps."""
        factor = 1 - (1 - self.final_share) * step / self.schedule.stop
        for name, engine in self.engines.items():
            for group, rate in zip(engine.inner_optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = factor * rate
