"""Shards read from each node's own disk (data.stage_to) instead of from a file system that all nodes share."""

from collections.abc import Sequence

from vesselgan.formats.local_copy import stage
from vesselgan.formats.shards import ShardSet
from vesselgan.runtime.distributed import World, on_every_rank


def staged(sets: Sequence[ShardSet], to: str | None, world: World) -> tuple[list[ShardSet], list[str]]:
    """(the copies, lines to tell of them); the sets themselves where `to` is null. A collective call."""
    if to is None:
        return list(sets), []
    copies = on_every_rank(world, lambda: [stage(shards.folder, to) for shards in sets])
    lines = [
        f"reads {shards.folder} from its copy {path}, "
        + ("found there" if seconds is None else f"copied and verified in {seconds:.1f} s")
        for shards, (path, seconds) in zip(sets, copies, strict=True)
    ]
    return [ShardSet(path) for path, _ in copies], lines
