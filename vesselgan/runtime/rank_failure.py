"""When a rank dies or hangs, the others leave too, and say which one it was.

A collective call that fails tells that some peer is gone, seldom which. So the ranks that are left call the roll in the
store through which they had met, on rank 0: who does not answer is the one.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from vesselgan.core.errors import ResourceError
from vesselgan.runtime.distributed import World

ROLL_CALL_S = 10.0
"""How long a rank may take to notice that another one is gone, once the first has noticed."""
SIGNS = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out", "timed out", "Broken pipe")


@contextmanager
def naming_lost_ranks(world: World) -> Iterator[None]:
    """ResourceError, told once, in place of what a collective call raises when a peer is gone or silent."""
    try:
        yield
    except RuntimeError as error:
        is_of_peers = isinstance(error, dist.DistError) or any(sign in str(error) for sign in SIGNS)
        if world.size == 1 or not is_of_peers:
            raise
        here = _roll_call(world)
        lost = [rank for rank in range(world.size) if rank not in here]
        failed = ResourceError(
            f"{_in_words(lost)} of {world.size}: killed, out of memory, stuck, or ended by its own error; the others "
            f"leave. The last checkpoint is whole: the same command goes on from it ({_first_line(error)})"
        )
        failed.is_reported = any(rank < world.rank for rank in here)
        raise failed from error


def _roll_call(world: World) -> list[int]:
    """The ranks that are still here, this one among them."""
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"vesselgan/here/{world.rank}", "1")
        here = _wait_for(store, "here", list(range(world.size)))
        store.set(f"vesselgan/done/{world.rank}", "1")
        if world.is_main:
            _wait_for(store, "done", here)  # the store goes with this process
        return here
    except RuntimeError:
        # No answer from the store itself.
        return [rank for rank in range(world.size) if rank > 0]


def _wait_for(store: dist.Store, word: str, ranks: list[int]) -> list[int]:
    until = time.monotonic() + ROLL_CALL_S
    while True:
        answered = [rank for rank in ranks if store.check([f"vesselgan/{word}/{rank}"])]
        if len(answered) == len(ranks) or time.monotonic() > until:
            return answered
        time.sleep(0.1)


def _in_words(lost: list[int]) -> str:
    if not lost:
        return "a connection between ranks was lost, though every rank answers,"
    return f"lost rank{'s' if len(lost) > 1 else ''} {', '.join(map(str, lost))}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160]
