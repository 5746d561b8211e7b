"""Run one measurement and print it as one line of JSON, with the machine it was measured on."""

import json
import os
import sys
from pathlib import Path

from vesselgan.config.schema import Benchmark
from vesselgan.core.atomic_io import describe
from vesselgan.core.errors import ResourceError, UsageError, check_readable
from vesselgan.runtime.provenance import collect
from vesselgan.tools.benchmark import (
    acceptance,
    loader,
    machine,
    metrics,
    prepare,
    private,
    scaling,
    segment,
    step,
    utility,
)
from vesselgan.tools.benchmark.interleave import load
from vesselgan.tools.benchmark.measurement import flatten
from vesselgan.workflow.stage import stop_at_signals

MODULES = (loader, machine, metrics, prepare, private, scaling, segment, step)
TARGETS = {module.__name__.rpartition(".")[2]: module.run for module in MODULES}
DIRECTORIES = {"acceptance": acceptance.run, "utility": utility.run}
"""Targets that write one instead of a line."""
LINE_KEYS = {"target", "repeats", "load"}
"""Of every line."""


def benchmark(config: Benchmark) -> None:
    """Print the JSON line of config.target, to a terminal also as a table; append it to config.out if that is set.

    A target of DIRECTORIES writes a directory instead.
    """
    stop_at_signals("run the same command again")
    makes_labels = config.variant.flow is None and config.variant.condition is None
    if _needs_critic(config) and not makes_labels:
        raise UsageError(
            f"target={config.target} with variant={config.variant.name}: measures the step of a GAN that makes labels"
        )
    if config.target in DIRECTORIES:
        DIRECTORIES[config.target](config)
        return
    if config.out is not None:
        _check_out(Path(config.out))
    before = load()
    result = TARGETS[config.target](config)
    provenance = collect()
    measurement = {
        "target": config.target,
        **result,
        "repeats": config.repeats,
        "load": {"before": before, "after": load()},
        **{key: provenance[key] for key in ("time", "vesselgan", "python", "packages", "hardware")},
    }
    if sys.stderr.isatty():
        print("\n".join(f"{name:<44} {value}" for name, value in flatten(measurement)), file=sys.stderr, flush=True)
    line = json.dumps(measurement)
    print(line, flush=True)
    if config.out is not None:
        try:
            Path(config.out).parent.mkdir(parents=True, exist_ok=True)
            with open(config.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise ResourceError(f"out={config.out}: {describe(error)}; name another file") from error


def _check_out(path: Path) -> None:
    """Raises UsageError unless a line may be appended to `path`: it is new, or holds whole lines of benchmarks."""
    if not os.path.lexists(path):
        return
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else "no file"
        if not text or (text.endswith("\n") and all(json.loads(t).keys() >= LINE_KEYS for t in text.splitlines())):
            return
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: JSON, and no object
        check_readable(path, error)
    raise UsageError(f"out={path}: is there and holds something else than a benchmark's lines; name another file")


def _needs_critic(config: Benchmark) -> bool:
    if config.target == "acceptance":
        return set(config.parts) != {"science"}
    return config.target in ("step", "machine", "scaling", "private")
