"""A step's time by kind of work, and the machine's peak rate."""

import os
import time
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from vesselgan.core import console

# The first kind with a key that is part of an operation's name.
KINDS = {
    "optimizer": ("adam", "foreach", "addcdiv"),
    "normalisation": ("norm", "var_mean"),
    "convolution": ("conv",),
    "linear": ("addmm", "::mm", "::mv", "linear"),
}
ROUNDS = 5


def shares_of(step: Callable[[], None], device: torch.device) -> tuple[dict[str, float], float]:
    """(kind of work -> its share of one step's time on `device`, `other` the rest; seconds that `device` was busy)."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    if not console.is_debug():
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # above the lines on its start and stop
    with profile(activities=activities) as recorded:
        step()
    kind_us = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in recorded.key_averages():
        time_us = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        name = event.key.lower()
        # Skip our own spans, which enclose operations, and a GPU's kernels, which operations launched.
        if "::" not in name or event.device_type != DeviceType.CPU:
            continue
        kind = next((kind for kind, keys in KINDS.items() if any(key in name for key in keys)), "other")
        kind_us[kind] += time_us
    total_us = sum(kind_us.values())
    return {kind: time_us / total_us if total_us else 0.0 for kind, time_us in kind_us.items()}, total_us / 1e6


def matmul_flop_per_s(dtype: torch.dtype, device: torch.device) -> float:
    """The best of a few square matrix products in `dtype`: the peak rate of this machine."""
    size = 8192 if device.type == "cuda" else 2048
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    # CPU time, where other processes share the cores.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    best = float("inf")
    for _ in range(ROUNDS):
        start = clock()
        first @ second
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - start)
    return 2 * size**3 / best
