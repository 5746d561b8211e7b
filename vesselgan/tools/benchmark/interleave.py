"""Time candidates round by round, A B A B ... in one process, so that a busy machine slows all of them alike."""

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from vesselgan.core.errors import ResourceError
from vesselgan.core.processes import end_group


@dataclass(frozen=True)
class Timing:
    """Medians over rounds, seconds per round."""

    cpu_s: float
    """Of this process and of the children it waited for."""
    wall_s: float
    rounds: int


def interleave(candidates: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, Timing]:
    """Call every candidate once per round with the round's number; a first round, -1, warms up and does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    calls = [(number, name) for number in range(-1, rounds) for name in candidates]
    with tqdm(calls, unit="call", disable=None) as bar:
        for number, name in bar:
            bar.set_postfix_str(name)
            cpu_s, wall_s = _cpu_s(), time.perf_counter()
            candidates[name](number)
            if number >= 0:
                times[name].append((_cpu_s() - cpu_s, time.perf_counter() - wall_s))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    return {name: Timing(cpu_s, wall_s, rounds) for name, (cpu_s, wall_s) in medians.items()}


def run_process(what: str, words: Sequence[str], threads: int) -> None:
    """A candidate as a process of its own; ResourceError with the end of what it says if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    with started as process:
        try:
            _, errors = process.communicate()
        finally:
            end_group(process)  # a launcher that is ended leaves its ranks behind
    if process.returncode != 0:
        raise ResourceError(f"{what} failed (exit {process.returncode}): {errors.strip()[-400:]}")


def load() -> list[float]:
    """Processes that wanted a core over the last 1, 5 and 15 minutes: no time means anything without them."""
    return [round(value, 2) for value in os.getloadavg()]


def _cpu_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
