"""One job at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_prep import mpi
from data_prep.mpi import MpiWorld
from vesselgan.core import locks
from vesselgan.core.errors import ResourceError


@contextmanager
def exclusive(world: MpiWorld, path: Path) -> Iterator[None]:
    """Rank 0 holds `path` for the job. Raises ResourceError, on all ranks, if another job holds it."""
    files: list[IO[str]] = []
    mpi.run_on_rank0(world, lambda: files.append(_acquire(path)))
    try:
        yield
    finally:
        if files:
            locks.remove(path, files[0])


def _acquire(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return locks.acquire(path)
    except locks.HeldError as error:
        raise ResourceError(f"another job writes in {path.parent}: {error}; wait until it ends") from error
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
