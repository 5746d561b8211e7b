"""Where a step's time goes: named spans for the profiler, clocked without ever waiting for the device.

phases = Phases(device)
with phases("critic/backward"): ...
phases.read(num_steps)          # {"time/critic_ms": ..., "time/update_ms": ...}
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.profiler import record_function

Scalars = dict[str, Tensor]
"""What an update tells of itself, by name, on the device."""
Phase = Callable[[str], AbstractContextManager]
"""A named span: torch's profiler alone, or `Phases`, which clocks it too."""
ON_THE_HOST = ("data_wait", "checkpoint", "sample_images")
"""What the device does not do; clocked on the host. The rest is clocked on the device, between two of its events."""


class Phases:
    """Sums of what each phase took. On CUDA a phase is timed by events that are read only when `read` is called."""

    def __init__(self, device: torch.device) -> None:
        self._has_events = device.type == "cuda"
        self._host_s: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A span `name` in the profiler, added to its phase; phases do not nest."""
        phase = phase_of(name)
        with record_function(name):
            if self._has_events and phase not in ON_THE_HOST:
                first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                first.record()
                yield
                last.record()
                self._events.append((phase, first, last))
            else:
                began = time.perf_counter()
                yield
                self._host_s[phase] += time.perf_counter() - began

    def read(self, num_steps: int) -> dict[str, float]:
        """Mean milliseconds per step of every phase since the last reading, `time/<phase>_ms`; starts anew."""
        taken_ms = {phase: 1000.0 * seconds for phase, seconds in self._host_s.items()}
        for phase, first, last in self._events:
            last.synchronize()
            taken_ms[phase] = taken_ms.get(phase, 0.0) + first.elapsed_time(last)
        self._host_s.clear()
        self._events.clear()
        return {f"time/{phase}_ms": total / max(1, num_steps) for phase, total in taken_ms.items()}


def phase_of(name: str) -> str:
    """`critic` for critic/scores, `update` for critic/update and generator/update, else the name itself."""
    player, _, part = name.partition("/")
    return "update" if part == "update" else player
