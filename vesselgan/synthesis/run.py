"""The command `generate`: patches, or whole volumes."""

import os

from vesselgan.config.schema import Generate
from vesselgan.core.errors import UsageError
from vesselgan.runtime.launchers import ranks_from_environment
from vesselgan.synthesis.generate import generate
from vesselgan.synthesis.volumes import generate_volumes


def run(config: Generate) -> None:
    """Make the samples that `config` asks for. Raises UsageError for patches on several ranks."""
    if config.volumes is not None:
        generate_volumes(config)
        return
    _, num_ranks, _ = ranks_from_environment(os.environ)
    if num_ranks > 1:
        raise UsageError(f"{num_ranks} ranks: patches are made by one process; start it alone, or make volumes=N")
    generate(config)
