"""Take turns, so that a machine's moods strike every competitor alike: A B A B ... in one process, then medians."""

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True)
class Cost:
    """Medians over rounds, seconds per round."""

    cpu_s: float
    """Of this process and of those it waited for."""
    wall_s: float
    rounds: int


def interleave(competitors: Mapping[str, Callable[[int], None]], rounds: int) -> dict[str, Cost]:
    """Call every competitor once per round, with the round's number; one round before does not count (warm caches)."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in competitors}
    turns = [(number, name) for number in range(-1, rounds) for name in competitors]
    with tqdm(turns, unit="turn", disable=None) as bar:
        for number, name in bar:
            bar.set_postfix_str(name)
            call = competitors[name]
            cpu_s, wall_s = _cpu_s(), time.perf_counter()
            call(number)
            if number >= 0:
                times[name].append((_cpu_s() - cpu_s, time.perf_counter() - wall_s))
    return {
        name: Cost(*(statistics.median(column) for column in zip(*rows, strict=True)), rounds=rounds)
        for name, rows in times.items()
    }


def load() -> list[float]:
    """How many processes wanted a core over the last 1, 5 and 15 minutes: without it no time means anything."""
    return [round(value, 2) for value in os.getloadavg()]


def _cpu_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
