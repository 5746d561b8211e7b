"""The entry of `vesselgan study`."""

import time
from pathlib import Path

from vesselgan.config.schema import Study
from vesselgan.core.console import log
from vesselgan.core.errors import UsageError
from vesselgan.core.processes import clock
from vesselgan.workflow.stage import stop_at_signals
from vesselgan.workflow.study.sources import run_sources
from vesselgan.workflow.study.sweep import run_sweep


def run(config: Study) -> Path:
    """Run the study's stages, skipping what is done; exits with the code of the first command that fails."""
    stop_at_signals()
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UsageError(f"seeds={config.seeds}: name at least one, none twice")
    if not config.name or Path(config.name).name != config.name:
        raise UsageError(
            f"name={config.name}: must be the name of a folder below {config.work_dir}/studies, not a path"
        )
    if config.study == "data_sources" and not config.runs:
        raise UsageError("study=data_sources needs runs=[DIR,...], the run directories of trained GANs")
    started = time.monotonic()
    home = Path(config.work_dir) / "studies" / config.name
    result = {"data_sources": run_sources, "sweep": run_sweep}[config.study](config, home)
    log.info(f"\nresult  {result.resolve()}\ntime    {clock(time.monotonic() - started)}")
    return result
