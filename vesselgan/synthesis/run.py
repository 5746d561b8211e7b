"""The command `generate`: patches, or whole volumes."""

from vesselgan.config.schema import Generate
from vesselgan.synthesis.generate import generate
from vesselgan.synthesis.volumes import generate_volumes


def run(config: Generate) -> None:
    """Make the samples that `config` asks for."""
    if config.volumes is None:
        generate(config)
    else:
        generate_volumes(config)
