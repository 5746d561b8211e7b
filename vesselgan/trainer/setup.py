"""What every training command does around its run: JSON and precision agree, ranks join and leave, shards are near."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vesselgan.config.compose import Command
from vesselgan.config.deepspeed import check_precision_agrees, read
from vesselgan.formats.local_copy import copy_to_node
from vesselgan.formats.shards import ShardSet
from vesselgan.runtime import distributed
from vesselgan.runtime.distributed import World, run_on_all_ranks
from vesselgan.runtime.launchers import ranks_from_environment
from vesselgan.runtime.rank_failure import naming_lost_ranks
from vesselgan.trainer.stopper import StopRequests, forget_requeue

Run = Callable[[Any, dict[str, Any], World, str, StopRequests], None]
"""(configuration, the JSON's contents, this rank, the command line so far, requests to stop) -> trains."""


def train_in_session(command: Command, run: Run, *, run_dir: Path, program: str, precision: str, key: str) -> None:
    """Call `run` among its peers; `key` is the setting that holds `precision`. UsageError where the JSON disagrees."""
    runtime = command.config.runtime
    if ranks_from_environment(os.environ)[0] == 0:
        forget_requeue(run_dir)
    name, raw = read(command.deepspeed_config, precision)
    typed = " ".join([program, *(word for word in command.overrides if not word.startswith(f"{key}="))])
    check_precision_agrees(name, raw, precision, command=typed, key=key)
    world = distributed.start(
        runtime.device, timeout_minutes=runtime.rank_timeout_minutes, deterministic=runtime.deterministic
    )
    try:
        with StopRequests(world, rank_timeout_minutes=runtime.rank_timeout_minutes) as requests:
            # Inside: a launcher that ends the others must not do so before they have said whom they lost.
            with naming_lost_ranks(world):
                run(command.config, raw, world, typed, requests)
    finally:
        distributed.stop()


def staged(sets: Sequence[ShardSet], to: str | None, world: World) -> tuple[list[ShardSet], list[str]]:
    """(copies on the node's own disk, lines to tell of them); the sets where `to` is null. A collective call."""
    if to is None:
        return list(sets), []
    copies = run_on_all_ranks(world, lambda: [copy_to_node(shards.folder, to) for shards in sets])
    lines = [
        f"reads {shards.folder} from its copy {path}, "
        + ("found there" if seconds is None else f"copied and verified in {seconds:.1f} s")
        for shards, (path, seconds) in zip(sets, copies, strict=True)
    ]
    return [ShardSet(path) for path, _ in copies], lines
