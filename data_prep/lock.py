"""One job at a time in a folder: a lock file that names the processes that hold it."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep import mpi
from data_prep.mpi import MpiWorld
from vesselgan.core.errors import ResourceError


@dataclass(frozen=True)
class Owner:
    """One process of the job that holds a lock."""

    host: str
    pid: int
    started: str | None
    """The kernel's start time of the process, which a later process with the same id does not share."""
    job: str | None
    """Slurm's job id, which a requeued job keeps."""


@contextmanager
def exclusive(world: MpiWorld, path: Path) -> Iterator[None]:
    """Hold `path` for all ranks of the job; raises ResourceError, on all ranks, if another job holds it."""
    owners = mpi.gather_results(world, this_process)
    mpi.print_on_rank0(world, mpi.run_on_rank0(world, lambda: acquire_lock(path, owners)))
    try:
        yield
    finally:
        if world.rank == 0:
            release_lock(path)


def this_process() -> Owner:
    """The calling process as an owner."""
    return Owner(socket.gethostname(), os.getpid(), _started(os.getpid()), os.environ.get("SLURM_JOB_ID"))


def acquire_lock(path: Path, owners: Sequence[Owner]) -> str | None:
    """Take the lock for `owners` (all ranks of the job); a note when the lock of a dead job was taken over.

    ResourceError, naming host, process and job, when another job holds it. A lock is dead when all its processes ran on
    this host and none lives, or when it belongs to an earlier start of the same Slurm job.
    """
    note = None
    candidate = path.with_name(f"{path.name}.{owners[0].host}.{owners[0].pid}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        candidate.write_text(json.dumps([asdict(owner) for owner in owners]))
        if not _link(candidate, path):
            note = f"took over the lock of a job that died ({_describe(_remove_dead(path, owners[0]))})"
            if not _link(candidate, path):
                raise ResourceError(_held_by(path, None))
        _remove_candidates(path, owners[0].host)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    finally:
        with suppress(OSError):  # never made, or its folder is a file
            candidate.unlink()
    return note


def release_lock(path: Path) -> None:
    path.unlink(missing_ok=True)


def _link(candidate: Path, path: Path) -> bool:
    """Make `path` the second name of `candidate`: complete at once and for one of several jobs, over NFS too."""
    try:
        os.link(candidate, path)
    except FileExistsError:
        return False
    return True


def _remove_candidates(path: Path, host: str) -> None:
    """Remove the files of this host's processes that died while they took the lock."""
    if not Path("/proc/self/stat").exists():
        return
    for stale in path.parent.glob(f"{path.name}.*"):
        _, _, pid = stale.name.removeprefix(f"{path.name}.").rpartition(".")
        if stale.name == f"{path.name}.{host}.{pid}" and pid.isdigit() and _started(int(pid)) is None:
            stale.unlink(missing_ok=True)


def _remove_dead(path: Path, me: Owner) -> Owner:
    """Remove the lock of a dead job and return its first owner; ResourceError when the job lives.

    The flock lets one process at a time do it.
    """
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            owners = [Owner(**entry) for entry in json.load(file)]
        except (ValueError, TypeError) as error:
            raise ResourceError(f"{path}: not a lock of this program; remove it if no job is building here") from error
        is_current = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        if not is_current or not all(_is_dead(owner, me) for owner in owners):
            raise ResourceError(_held_by(path, owners[0]))
        path.unlink()
    return owners[0]


def _is_dead(owner: Owner, me: Owner) -> bool:
    if owner.job is not None and owner.job == me.job and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        return True
    if owner.host != me.host:
        return False
    started = _started(owner.pid)
    if started is not None or Path("/proc/self/stat").exists():
        return started is None or (owner.started is not None and started != owner.started)
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _started(pid: int) -> str | None:
    """Start time by the kernel; None for a process that is gone or only waits to be reaped, and off Linux."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _held_by(path: Path, owner: Owner | None) -> str:
    return (
        f"another job is building in {path.parent}: {_describe(owner) if owner else 'it has just started'}; "
        f"wait for it, or remove {path} when that job is gone"
    )


def _describe(owner: Owner) -> str:
    return f"host {owner.host}, process {owner.pid}, job {owner.job or 'none'}"
