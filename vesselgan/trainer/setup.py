"""What every training command does around its run: JSON and precision agree, ranks join and leave, shards are near."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vesselgan.config.compose import Command
from vesselgan.config.deepspeed import check_precision_agrees, read
from vesselgan.formats import local_copy
from vesselgan.formats.shards import ShardSet
from vesselgan.runtime import distributed
from vesselgan.runtime.distributed import World, run_on_all_ranks
from vesselgan.runtime.launchers import ranks_from_environment
from vesselgan.runtime.rank_failure import naming_lost_ranks
from vesselgan.trainer.stopper import Stopper, remove_requeue

Run = Callable[[Any, dict[str, Any], World, str, Stopper], None]
"""(configuration, the DeepSpeed JSON, this rank, the command line for messages, stopper) -> trains."""


def train_in_session(command: Command, run: Run, *, run_dir: Path, program: str, precision: str, key: str) -> None:
    """Call `run` on every rank; `key` is the setting that holds `precision`. Raises UsageError if the JSON differs."""
    runtime = command.config.runtime
    if ranks_from_environment(os.environ)[0] == 0:
        remove_requeue(run_dir)
    name, raw = read(command.deepspeed_config, precision)
    command_line = " ".join([program, *(word for word in command.overrides if not word.startswith(f"{key}="))])
    check_precision_agrees(name, raw, precision, command=command_line, key=key)
    world = distributed.start(runtime.device, timeout_minutes=runtime.rank_timeout_minutes)
    distributed.select_kernels(deterministic=runtime.deterministic)
    try:
        with Stopper(world, rank_timeout_minutes=runtime.rank_timeout_minutes) as stopper:
            # Inside: a launcher must not end the other ranks before they have named the lost one.
            with naming_lost_ranks(world):
                run(command.config, raw, world, command_line, stopper)
    finally:
        distributed.stop()


def copy_to_node(
    sets: Sequence[ShardSet], local_copy_dir: str | None, world: World
) -> tuple[list[ShardSet], list[str]]:
    """(the sets as read from the node's own disk, lines for the log); the sets themselves where no folder is given.

    A collective call.
    """
    if local_copy_dir is None:
        return list(sets), []
    copies = run_on_all_ranks(world, lambda: [local_copy.copy_to_node(s.folder, local_copy_dir) for s in sets])
    lines = [
        f"reads {shards.folder} from its copy {path}, "
        + ("found there" if seconds is None else f"copied and verified in {seconds:.1f} s")
        for shards, (path, seconds) in zip(sets, copies, strict=True)
    ]
    return [ShardSet(path) for path, _ in copies], lines
