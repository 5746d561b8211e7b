"""Locks between processes: one at a time writes an artifact, and the lock's file names the process that does.

POSIX record locks (fcntl.lockf): they belong to a process and end with it. A forked child does not keep them, as it
would keep those of flock: reading workers that outlive a killed run do not hold its directory. Within one process a
second lock succeeds, and closing any handle of a file gives its lock up.
"""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

from vesselgan.core.errors import ResourceError

SECONDS_TO_TRY = 0.5
"""`holder_of` takes a free lock for a moment, which must not refuse a job that starts just then."""


def no_follow(path: str, flags: int) -> int:
    """Opener of a file that is no link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def try_lock(file: IO[Any]) -> bool:
    """Locks a file open for writing; False if another process has. A file system without locks counts as free."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def wait_for_lock(file: IO[Any]) -> None:
    """Locks a file open for writing once no other process has. Raises OSError on a file system without locks."""
    fcntl.lockf(file, fcntl.LOCK_EX)


def acquire(path: Path) -> IO[str]:
    """Holds `path` for this process until the returned file is closed; its text names the process.

    Raises ResourceError if another process holds it, or if it cannot be written or is a link.
    """
    deadline = time.monotonic() + SECONDS_TO_TRY
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8", opener=no_follow)
        except OSError as error:
            raise ResourceError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        if try_lock(file):
            if _is_at(path, file):
                break
        elif time.monotonic() > deadline:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ResourceError(f"{path.parent}: {holder} works in it; wait for its end, or name another folder")
        file.close()
        time.sleep(0.05)
    job = os.environ.get("SLURM_JOB_ID")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}{f', job {job}' if job else ''}\n")
    file.flush()
    return file


def remove(path: Path, file: IO[str]) -> None:
    """Gives a lock back and removes its file."""
    path.unlink(missing_ok=True)
    file.close()


def holder_of(path: Path) -> str | None:
    """The process that holds `path`, as its file names it; None if nobody is seen to hold it, or no file is there."""
    try:
        with path.open(encoding="utf-8") as file:
            holder = file.read().strip() or "a process"
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return holder
    except OSError:
        pass
    return None


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether `path` still is this file: its last holder may have removed it since it was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
