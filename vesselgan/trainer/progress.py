"""Means of a run's metrics, the time that a step takes, and when the run will end."""

import sys
import time
from datetime import datetime, timedelta
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vesselgan.runtime.distributed import World, mean_over_ranks
from vesselgan.trainer.logger import RunLog

SECONDS_PER_LINE = 10.0


class Meter:
    """Sums of scalars on the device since the last `reduce`, so that no step waits for the device."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        """`state`: from `to_json`, so that a resumed run's next mean is over the same steps."""
        self._counts: dict[str, int] = dict(state["counts"]) if state else {}
        self._sums = {name: torch.tensor(value) for name, value in (state["sums"] if state else {}).items()}

    def update(self, metrics: dict[str, Tensor]) -> None:
        """Add one value of each; names may come at different rates."""
        for name, value in metrics.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def reduce(self, world: World) -> dict[str, float]:
        """Means over the updates and over ranks, which must hold the same names; then resets."""
        names = sorted(self._sums)
        if not names:
            return {}
        means = torch.stack([self._sums[name].to(world.device) / self._counts[name] for name in names])
        means = mean_over_ranks(means, world)
        self._sums, self._counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))

    def to_json(self, world: World) -> dict[str, Any]:
        """The ranks' mean sums, for any number of ranks to resume from, exact in JSON; a collective call."""
        names = sorted(self._sums)
        sums = [self._sums[name].to(world.device) for name in names]
        means = mean_over_ranks(torch.stack(sums), world).tolist() if sums else []
        return {"counts": self._counts, "sums": dict(zip(names, means, strict=True))}


class Progress:
    """A bar on a terminal, else a line every few seconds; times the steps without the pauses between them."""

    def __init__(self, log: RunLog, *, start: int, stop: int, patches_per_step: int) -> None:
        self._log, self._start, self._stop, self._step = log, start, stop, start
        self._patches_per_step = patches_per_step
        self._time, self._next_line, self._paused_s = time.perf_counter(), 0.0, 0.0
        self._bar = tqdm(
            total=stop,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not (log.is_main and sys.stderr.isatty()),
        )
        self.step_s = 0.0
        """Seconds of a step since the last `log`; 0 before the first."""

    def log(self, step: int, metrics: dict[str, float], summary: str) -> None:
        """Log `metrics` at `step` with the step's time; `summary` stands beside the bar or in the line."""
        now = time.perf_counter()
        self.step_s = max(0.0, now - self._time - self._paused_s) / max(1, self.steps_since_log(step))
        is_first, self._step, self._time, self._paused_s = self._step == self._start, step, now, 0.0
        patches_per_s = self._patches_per_step / max(self.step_s, 1e-9)
        speed = {"time/step_ms": 1000 * self.step_s, "throughput/patches_per_s": patches_per_s}
        self._log.scalars(step, metrics | speed)
        left_s = (self._stop - step) * self.step_s
        self.advance(step)
        self._bar.set_postfix_str(summary)
        if self._bar.disable and (now >= self._next_line or step == self._stop):
            self._next_line = now + SECONDS_PER_LINE
            pace = f"{1000 * self.step_s:.0f} ms a step, {left_s / 60:.1f} min left"
            self._log.line(f"step {step}/{self._stop}  {summary}  {pace}")
        if is_first and step < self._stop:
            end = datetime.now().astimezone() + timedelta(seconds=left_s)
            self._log.line(f"at {1000 * self.step_s:.0f} ms a step the end is expected at {end:%Y-%m-%d %H:%M %Z}")
        if step == self._stop:
            self._bar.close()

    def steps_since_log(self, step: int) -> int:
        return step - self._step

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        self._bar.update(step - self._bar.n)

    def exclude(self, seconds: float) -> None:
        """Leave `seconds` out of the step time."""
        self._paused_s += seconds
