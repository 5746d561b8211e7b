"""The memory that a process may take: the machine's, within what a batch system allows. Standard library alone."""

import math
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(num_bytes: float) -> str:
    """`3.74 GiB`: in the unit that leaves digits before the point, for a message."""
    if math.isinf(num_bytes):
        return "no known limit"
    power = 0
    while num_bytes >= 1000 and power < len(UNITS) - 1:
        num_bytes, power = num_bytes / 1024, power + 1
    digits = 0 if power == 0 or num_bytes >= 100 else 1 if num_bytes >= 10 else 2
    return f"{num_bytes:.{digits}f} {UNITS[power]}"


def available_bytes() -> float:
    """The machine's free memory or the smallest limit that holds for this process; infinite if neither is known."""
    return min([_meminfo("MemAvailable"), *_limits()])


def total_bytes() -> float:
    """The machine's memory or the smallest limit that holds for this process; infinite if neither is known."""
    return min([_meminfo("MemTotal"), *_limits()])


def _meminfo(name: str) -> float:
    try:
        lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return float("inf")


def _limits() -> list[float]:
    """Limits of the process's control group and all above it (versions 1 and 2): Slurm limits the job, not the task."""
    try:
        entries = [line.split(":", 2) for line in (PROC / "self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    files = []
    for _, controllers, group in entries:
        below = Path(group.lstrip("/"))
        if controllers in ("", "memory"):
            root, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
            files += [root / folder / name for folder in (below, *below.parents)]
    return [float(text) for file in files if (text := _read(file)).isdigit()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
