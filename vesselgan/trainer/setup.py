"""What every training command does around its run: JSON and precision agree, ranks join, ranks leave."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vesselgan.config.compose import Command
from vesselgan.config.deepspeed import agree, read
from vesselgan.runtime import distributed
from vesselgan.runtime.distributed import World
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
    typed = " ".join([program, *(word for word in command.words if not word.startswith(f"{key}="))])
    agree(name, raw, precision, command=typed, key=key)
    world = distributed.start(runtime.device, timeout_minutes=runtime.rank_timeout_minutes)
    try:
        with StopRequests(world, rank_timeout_minutes=runtime.rank_timeout_minutes) as requests:
            # Inside: a launcher that ends the others must not do so before they have said whom they lost.
            with naming_lost_ranks(world):
                run(command.config, raw, world, typed, requests)
    finally:
        distributed.stop()
