"""Where a step's time goes by kind of work, and what the machine could do at most."""

import time
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# The first kind whose word is part of an operation's name.
KINDS = {
    "optimizer": ("adam", "foreach", "addcdiv"),
    "normalisation": ("norm", "var_mean"),
    "convolution": ("conv",),
    "linear": ("addmm", "::mm", "::mv", "linear"),
}
ROUNDS = 5


def shares_of(step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Kind of work -> its share of one step's time on `device`, children not counted twice; `other`: the rest."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as recorded:
        step()
    spent = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in recorded.key_averages():
        time_us = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        name = event.key.lower()
        # Spans of ours enclose operations; a GPU's kernels stand beside the operations that launched them.
        if "::" not in name or event.device_type != DeviceType.CPU:
            continue
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
        spent[kind] += time_us
    total = sum(spent.values())
    return {kind: time_us / total for kind, time_us in spent.items()} if total else spent


def matmul_flop_per_s(dtype: torch.dtype, device: torch.device) -> float:
    """The best of a few square matrix products in `dtype`: what this machine reaches on what it does best."""
    size = 8192 if device.type == "cuda" else 2048
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    # A CPU that others use too is asked for the time it worked.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    best = float("inf")
    for _ in range(ROUNDS):
        begun = clock()
        first @ second
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - begun)
    return 2 * size**3 / best
