"""Run one measurement and tell it as one line of JSON, with what it was measured on."""

import json
from pathlib import Path

from vesselgan.benchmark import loader, prepare
from vesselgan.benchmark.rounds import load
from vesselgan.config.schema import Benchmark
from vesselgan.errors import ResourceError
from vesselgan.files import describe
from vesselgan.runtime.provenance import collect

TARGETS = {"loader": loader.run, "prepare": prepare.run}


def benchmark(config: Benchmark) -> None:
    """Print the JSON line of config.target; also append it to config.out, where one is named."""
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
    line = json.dumps(facts)
    print(line, flush=True)
    if config.out is not None:
        try:
            Path(config.out).parent.mkdir(parents=True, exist_ok=True)
            with open(config.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise ResourceError(f"out={config.out}: {describe(error)}; name another file") from error
