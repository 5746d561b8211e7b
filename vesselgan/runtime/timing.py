"""The time of a step's phases: named profiler spans, timed without waiting for the device.

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
"""Metrics of an update by name, on the device."""
Phase = Callable[[str], AbstractContextManager]
"""A named span: torch's `record_function`, or `Phases`, which times it too."""
HOST_PHASES = ("data_wait", "checkpoint", "sample_images")
"""Timed on the host; all others between two events of the device."""


class Phases:
    """Total time per phase. CUDA events are read only in `read`."""

    def __init__(self, device: torch.device) -> None:
        self._has_events = device.type == "cuda"
        self._host_s: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A profiler span `name`, added to the time of its phase; phases do not nest."""
        phase = phase_of(name)
        with record_function(name):
            if self._has_events and phase not in HOST_PHASES:
                first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                first.record()
                yield
                last.record()
                self._events.append((phase, first, last))
            else:
                started_at = time.perf_counter()
                yield
                self._host_s[phase] += time.perf_counter() - started_at

    def read(self, num_steps: int) -> dict[str, float]:
        """Mean milliseconds per step of every phase since the last call, as `time/<phase>_ms`."""
        total_ms = {phase: 1000.0 * seconds for phase, seconds in self._host_s.items()}
        for phase, first, last in self._events:
            last.synchronize()
            total_ms[phase] = total_ms.get(phase, 0.0) + first.elapsed_time(last)
        self._host_s.clear()
        self._events.clear()
        return {f"time/{phase}_ms": ms / max(1, num_steps) for phase, ms in total_ms.items()}


def phase_of(name: str) -> str:
    """`critic` for critic/scores, `update` for critic/update and generator/update, else the name itself."""
    network, _, action = name.partition("/")
    return "update" if action == "update" else network
