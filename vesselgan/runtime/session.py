"""What every training command does around its run: JSON and precision agree, ranks join, ranks leave."""

from collections.abc import Callable
from typing import Any

from vesselgan.config.compose import Command
from vesselgan.config.deepspeed import agree, read
from vesselgan.runtime import distributed
from vesselgan.runtime.distributed import World

Run = Callable[[Any, dict[str, Any], World, str], None]
"""(configuration, the JSON's contents, this rank, the command line so far) -> trains."""


def train_in_session(command: Command, run: Run, *, program: str, precision: str, key: str) -> None:
    """Call `run` among its peers; `key` is the setting that holds `precision`. UsageError where the JSON disagrees."""
    name, raw = read(command.deepspeed_config, precision)
    typed = " ".join([program, *(word for word in command.words if not word.startswith(f"{key}="))])
    agree(name, raw, precision, command=typed, key=key)
    world = distributed.start(command.config.runtime.device)
    try:
        run(command.config, raw, world, typed)
    finally:
        distributed.stop()
