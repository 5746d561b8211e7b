"""How far a run is: means of what its steps told, the time a step takes, and when it will end."""

import sys
import time
from datetime import datetime, timedelta

import torch
from tqdm import tqdm

from vesselgan.runtime.distributed import World, mean_over_ranks
from vesselgan.trainer.logger import RunLog

SECONDS_PER_LINE = 10.0


class Meter:
    """Sums of scalars on the device since the last reading, so that no step waits for it."""

    def __init__(self, state: dict | None = None) -> None:
        """`state`: what `to_json` gave, so that a resumed run's next mean is over the same steps."""
        self._counts: dict[str, int] = dict(state["counts"]) if state else {}
        self._sums = {name: torch.tensor(value) for name, value in (state["sums"] if state else {}).items()}

    def take(self, scalars: dict[str, torch.Tensor]) -> None:
        """One of each; a name may be told more or less often than others."""
        for name, value in scalars.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self, world: World) -> dict[str, float]:
        """Means over how often each was told, and over ranks, on which the names must agree; starts anew."""
        names = sorted(self._sums)
        if not names:
            return {}
        means = torch.stack([self._sums[name].to(world.device) / self._counts[name] for name in names])
        means = mean_over_ranks(means, world).tolist()
        self._sums, self._counts = {}, {}
        return dict(zip(names, means, strict=True))

    def to_json(self, world: World) -> dict:
        """The ranks' mean sums, for any number of ranks to go on from, exact in JSON; a collective call."""
        names = sorted(self._sums)
        sums = [self._sums[name].to(world.device) for name in names]
        means = mean_over_ranks(torch.stack(sums), world).tolist() if sums else []
        return {"counts": self._counts, "sums": dict(zip(names, means, strict=True))}


class Progress:
    """How far and how fast: a bar on a terminal, else a line now and then; the step's time without what pauses it."""

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
        """What a step took last, seconds; 0 before the first reading."""

    def tell(self, done: int, values: dict[str, float], words: str) -> None:
        """Log `values` at step `done` with the step's time; `words` go beside the bar or into the line."""
        now = time.perf_counter()
        self.step_s = max(0.0, now - self._time - self._paused_s) / max(1, self.steps_since(done))
        is_first, self._step, self._time, self._paused_s = self._step == self._start, done, now, 0.0
        speed = {"step_ms": 1000 * self.step_s, "patches_per_s": self._patches_per_step / max(self.step_s, 1e-9)}
        self._log.scalars(done, values | speed)
        left_s = (self._stop - done) * self.step_s
        self.advance(done)
        self._bar.set_postfix_str(words)
        if self._bar.disable and (now >= self._next_line or done == self._stop):
            self._next_line = now + SECONDS_PER_LINE
            pace = f"{1000 * self.step_s:.0f} ms a step, {left_s / 60:.1f} min left"
            self._log.line(f"step {done}/{self._stop}  {words}  {pace}")
        if is_first and done < self._stop:
            end = datetime.now().astimezone() + timedelta(seconds=left_s)
            self._log.line(f"at {1000 * self.step_s:.0f} ms a step the end is expected at {end:%Y-%m-%d %H:%M %Z}")
        if done == self._stop:
            self._bar.close()

    def steps_since(self, done: int) -> int:
        """Steps from the last reading to `done`."""
        return done - self._step

    def advance(self, done: int) -> None:
        """Move the bar to step `done`."""
        self._bar.update(done - self._bar.n)

    def paused(self, seconds: float) -> None:
        """Leave `seconds` out of the step time."""
        self._paused_s += seconds
