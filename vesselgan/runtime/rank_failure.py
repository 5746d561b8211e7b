"""When a rank dies or hangs, the others exit too and name it.

A failed collective call seldom says which rank is lost. So the remaining ranks register in the process group's store on
rank 0; the ranks that do not are lost.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from vesselgan.core.errors import ResourceError
from vesselgan.runtime.distributed import World

REGISTER_TIMEOUT_S = 10.0
"""Time for all ranks to notice a lost one after the first has."""
CONNECTION_ERRORS = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out", "timed out", "Broken pipe")


@contextmanager
def naming_lost_ranks(world: World) -> Iterator[None]:
    """ResourceError, printed once, in place of what a collective call raises for a lost or silent rank."""
    try:
        yield
    except RuntimeError as error:
        is_lost = isinstance(error, dist.DistError) or any(text in str(error) for text in CONNECTION_ERRORS)
        if world.size == 1 or not is_lost:
            raise
        alive = _register(world)
        lost = [rank for rank in range(world.size) if rank not in alive]
        failure = ResourceError(
            f"{_describe_lost(lost)} of {world.size}: killed, out of memory, stuck, or ended by its own error; the "
            f"others exit. Resume from the last checkpoint with the same command ({_first_line(error)})"
        )
        failure.is_printed_elsewhere = any(rank < world.rank for rank in alive)
        raise failure from error


def _register(world: World) -> list[int]:
    """Register this rank and return the ranks that are alive."""
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"vesselgan/alive/{world.rank}", "1")
        alive = _wait_for(store, "alive", list(range(world.size)))
        store.set(f"vesselgan/done/{world.rank}", "1")
        if world.is_main:
            _wait_for(store, "done", alive)  # the store ends with this process
        return alive
    except RuntimeError:
        # The store does not answer: rank 0 is lost.
        return [rank for rank in range(world.size) if rank > 0]


def _wait_for(store: dist.Store, key: str, ranks: list[int]) -> list[int]:
    deadline = time.monotonic() + REGISTER_TIMEOUT_S
    while True:
        answered = [rank for rank in ranks if store.check([f"vesselgan/{key}/{rank}"])]
        if len(answered) == len(ranks) or time.monotonic() > deadline:
            return answered
        time.sleep(0.1)


def _describe_lost(lost: list[int]) -> str:
    if not lost:
        return "a connection between ranks was lost, though every rank answers,"
    return f"lost rank{'s' if len(lost) > 1 else ''} {', '.join(map(str, lost))}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160]
