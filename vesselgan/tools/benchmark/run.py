"""Run one measurement and tell it as one line of JSON, with what it was measured on."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Benchmark
from vesselgan.core.atomic_io import describe
from vesselgan.core.errors import ResourceError
from vesselgan.runtime.provenance import collect
from vesselgan.tools.benchmark import loader, machine, metrics, prepare, private, scaling, segment, step
from vesselgan.tools.benchmark.interleave import load

TARGETS = {"loader": loader.run, "prepare": prepare.run, "step": step.run}
TARGETS |= {"segment": segment.run, "metrics": metrics.run, "machine": machine.run, "scaling": scaling.run}
TARGETS |= {"private": private.run}


def benchmark(config: Benchmark) -> None:
    """Print the JSON line of config.target, to a person a table before it; append it to config.out, where named."""
    before = load()
    result = TARGETS[config.target](config)
    made_with = collect()
    facts = {
        "target": config.target,
        **result,
        "repeats": config.repeats,
        "load": {"before": before, "after": load()},
        **{key: made_with[key] for key in ("time", "vesselgan", "python", "packages", "hardware")},
    }
    if sys.stderr.isatty():
        print("\n".join(f"{name:<44} {value}" for name, value in rows(facts)), file=sys.stderr, flush=True)
    line = json.dumps(facts)
    print(line, flush=True)
    if config.out is not None:
        try:
            Path(config.out).parent.mkdir(parents=True, exist_ok=True)
            with open(config.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise ResourceError(f"out={config.out}: {describe(error)}; name another file") from error


def rows(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of everything measured, numbers to four digits."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from rows(value, f"{prefix}{name}.")
        else:
            yield prefix + name, f"{value:.4g}" if isinstance(value, float) else str(value)
