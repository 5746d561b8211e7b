"""How much memory a process may still take: of the machine's, and of what a batch system allows. Standard library."""

from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes() -> float:
    """Free memory, or the smallest limit of a control group that holds this process; infinite where neither is told."""
    return min([_free(), *cgroup_limits()])


def _free() -> float:
    try:
        lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return float("inf")


def cgroup_limits() -> list[float]:
    """Of the process's group and all above it: Slurm limits the job, not the task. Versions 1 and 2."""
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
