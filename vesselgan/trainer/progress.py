"""Means of a run's metrics, the time that a step takes, and when the run will end."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vesselgan.runtime.distributed import World, mean_over_ranks
from vesselgan.trainer.run_log import RunLog

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


class Pace:
    """How long things take, in seconds, for the log and for whoever must stop in time."""

    def __init__(self) -> None:
        self.step_s = 0.0
        """A step, since the last log; 0 before the first."""
        self.save_s = 0.0
        """The last checkpoint with all that is done beside it; an estimate before the first."""
        self.write_s = 0.0
        """Writing the last checkpoint of the session."""
        self.earlier_s = 0.0
        """Training in earlier sessions."""
        self.start()

    def start(self) -> None:
        """Call before the first step."""
        self._started_at = self._logged_at = self._paused_at = time.perf_counter()
        self._paused_s = 0.0

    @property
    def seconds(self) -> float:
        """Training in all sessions."""
        return self.earlier_s + time.perf_counter() - self._started_at

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What is done in this block counts as no step's time."""
        self._paused_at = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - self._paused_at

    def measure_save(self, write_s: float) -> None:
        """Call after a save: it took the time since the pause began, of which `write_s` for the checkpoint alone."""
        self.save_s, self.write_s = time.perf_counter() - self._paused_at, write_s

    def measure_step(self, num_steps: int) -> None:
        """Call after `num_steps` steps since the last call."""
        now = time.perf_counter()
        self.step_s = max(0.0, now - self._logged_at - self._paused_s) / max(1, num_steps)
        self._logged_at, self._paused_s = now, 0.0


class Progress:
    """A bar on a terminal, else a line every few seconds."""

    def __init__(self, log: RunLog, *, start: int, stop: int) -> None:
        self._log, self._start, self._stop, self._step = log, start, stop, start
        self._next_line = 0.0
        self._bar = tqdm(
            total=stop,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not (log.is_main and sys.stderr.isatty()),
        )

    def show(self, step: int, summary: str, step_s: float) -> None:
        """`summary` beside the bar or in a line, with the time that is left at `step_s` seconds a step."""
        now, left_s = time.perf_counter(), (self._stop - step) * step_s
        is_first, self._step = self._step == self._start, step
        self._bar.set_postfix_str(summary)
        if self._bar.disable and (now >= self._next_line or step == self._stop):
            self._next_line = now + SECONDS_PER_LINE
            pace = f"{1000 * step_s:.0f} ms a step, {left_s / 60:.1f} min left"
            self._log.line(f"step {step}/{self._stop}  {summary}  {pace}")
        if is_first and step < self._stop:
            end = datetime.now().astimezone() + timedelta(seconds=left_s)
            self._log.line(f"at {1000 * step_s:.0f} ms a step the end is expected at {end:%Y-%m-%d %H:%M %Z}")
        if step == self._stop:
            self._bar.close()

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        self._bar.update(step - self._bar.n)
