"""One job at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_prep import mpi
from data_prep.mpi import MpiWorld
from vesselgan.core import locks


@contextmanager
def exclusive(world: MpiWorld, path: Path) -> Iterator[None]:
    """Rank 0 holds `path` for the job. Raises ResourceError, on all ranks, if another job holds it."""
    files: list[IO[str]] = []
    mpi.run_on_rank0(world, lambda: files.append(locks.acquire(path)))
    try:
        yield
    finally:
        if files:
            locks.remove(path, files[0])
