"""How far a run is: means of what its steps told, the time a step takes, and when it will end."""

import sys
import time

import torch

from vesselgan.runtime.distributed import World, mean_over_ranks
from vesselgan.runtime.log import RunLog

SECONDS_PER_LINE = 10.0


class Meter:
    """Sums of scalars on the device since the last reading, so that no step waits for it."""

    def __init__(self, state: dict | None = None) -> None:
        """`state`: what `to_json` gave, so that a resumed run's next mean is over the same steps."""
        self._count = state["count"] if state else 0
        self._sums = {name: torch.tensor(value) for name, value in (state["sums"] if state else {}).items()}

    def take(self, scalars: dict[str, torch.Tensor]) -> None:
        for name, value in scalars.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
        self._count += 1

    def read(self, world: World) -> dict[str, float]:
        """Means over steps and ranks; starts anew."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].to(world.device) for name in names])
        means = mean_over_ranks(sums / self._count, world).tolist()
        self._sums, self._count = {}, 0
        return dict(zip(names, means, strict=True))

    def to_json(self) -> dict:
        """This rank's sums; float32 numbers survive JSON exactly."""
        return {"count": self._count, "sums": {name: value.item() for name, value in self._sums.items()}}


class Progress:
    """Step time without what pauses it (a save, a validation), and a line with the predicted end now and then."""

    def __init__(self, log: RunLog, *, start: int, stop: int) -> None:
        self._log, self._stop, self._step = log, stop, start
        self._time, self._next_line, self._paused_s = time.perf_counter(), 0.0, 0.0
        self._is_terminal = sys.stderr.isatty()
        self.step_s = 0.0
        """What a step took last, seconds; 0 before the first reading."""

    def tell(self, done: int, values: dict[str, float], words: str) -> None:
        """Log `values` at step `done` with the step's time; `words` go into the line."""
        now = time.perf_counter()
        self.step_s = max(0.0, now - self._time - self._paused_s) / max(1, done - self._step)
        self._step, self._time, self._paused_s = done, now, 0.0
        self._log.scalars(done, values | {"step_ms": 1000 * self.step_s})
        if self._is_terminal or now >= self._next_line or done == self._stop:
            self._next_line = now + SECONDS_PER_LINE
            left_min = (self._stop - done) * self.step_s / 60
            self._log.line(
                f"step {done}/{self._stop}  {words}  {1000 * self.step_s:.0f} ms a step, {left_min:.1f} min left"
            )

    def paused(self, seconds: float) -> None:
        """Leave `seconds` out of the step time."""
        self._paused_s += seconds
