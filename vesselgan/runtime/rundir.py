"""The run directory: made before step 0, compared on resume, marked when finished."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from vesselgan.config import compose
from vesselgan.errors import UsageError
from vesselgan.files import PARTIAL, write_text
from vesselgan.runtime.provenance import collect

# What may differ between the start of a run and its continuation without changing what it computes.
FREE_TO_CHANGE = ("work_dir", "run_dir", "checkpoint", "runtime.device", "train.max_minutes")
FREE_TO_CHANGE += ("train.num_workers", "unet.num_workers")


def prepare(run_dir: Path, verb: str, config: Any, engine_settings: dict[str, dict[str, Any]]) -> None:
    """Make `run_dir` with config.yaml, deepspeed_<player>.json and provenance.json, or check that it is this run's.

    UsageError when it holds a run with other settings, naming them, or something that is no run.
    """
    stored = run_dir / "config.yaml"
    if stored.is_file():
        differing = differences(compose.from_yaml(verb, stored), config)
        if differing:
            raise UsageError(f"{run_dir}: this run was started with other settings: {'; '.join(differing)}")
        return
    ours = {f"deepspeed_{player}.json" for player in engine_settings} | {"provenance.json"}
    if run_dir.exists() and any(path.name.removesuffix(PARTIAL) not in ours for path in run_dir.iterdir()):
        raise UsageError(f"{run_dir}: is not empty and holds no run; name another --run_dir")
    run_dir.mkdir(parents=True, exist_ok=True)
    for player, settings in engine_settings.items():
        write_json(run_dir / f"deepspeed_{player}.json", settings)
    write_json(run_dir / "provenance.json", collect())
    # Last: its presence means that the directory is complete.
    write_text(stored, compose.to_yaml(config))


def differences(before: Any, now: Any) -> list[str]:
    """`key: old -> new` for every setting that matters and differs."""
    old, new = _flat(dataclasses.asdict(before)), _flat(dataclasses.asdict(now))
    keys = [key for key in new if key not in FREE_TO_CHANGE and old.get(key) != new[key]]
    return [f"{key}: {old.get(key)} -> {new[key]}" for key in keys]


def is_finished(run_dir: Path) -> bool:
    return (run_dir / "finished.json").is_file()


def finish(run_dir: Path, facts: dict[str, Any]) -> None:
    """Mark the run as finished; `facts` go into finished.json."""
    write_json(run_dir / "finished.json", facts)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, published by rename."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
