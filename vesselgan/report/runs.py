"""A GAN's run directory as the report reads it: settings, logged scalars, architecture, synthetic shards."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vesselgan.core.errors import DataError, UsageError


@dataclass(frozen=True)
class Run:
    """A run directory; a field is empty if its file does not exist."""

    folder: Path
    settings: dict[str, Any]
    settings_hash: str
    """SHA-256 of config.yaml."""
    provenance: dict[str, Any]
    finished: dict[str, Any] | None
    steps: np.ndarray
    scalars: dict[str, np.ndarray]
    """By name, one value per entry of `steps`; NaN if it was not logged or not finite."""
    synthetic: Path | None
    architecture: dict[str, Any] | None
    """The networks, layer by layer."""

    @property
    def variant(self) -> str | None:
        variant = self.settings.get("variant")
        name = variant.get("name") if isinstance(variant, dict) else None
        return str(name) if name else None

    @property
    def title(self) -> str:
        name = self.variant
        return f"{name} ({self.folder.name})" if name and name != self.folder.name else self.folder.name

    @property
    def is_private(self) -> bool:
        """Whether its training was differentially private."""
        return self.setting("variant.dp") is not None

    def setting(self, key: str) -> Any:
        """The setting of this dotted name, or None."""
        value: Any = self.settings
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


def gan_of(record: Any) -> tuple[str, str] | None:
    """Returns (run, weights' sha256) of the GAN that made some patches, from their record; None if it lacks them."""
    if not isinstance(record, dict) or not record.get("run") or not record.get("weights_sha256"):
        return None
    return str(record["run"]), str(record["weights_sha256"])


def read_run(folder: str | Path, synthetic: str | Path | None = None) -> Run:
    """Reads a run directory; `synthetic` is the folder of its patches, by default FOLDER/synthetic.

    Raises UsageError if the folder does not exist, DataError for a file in it that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"runs: {folder} does not exist; name run directories of launch/train_gan.py")
    settings, settings_hash = _read_settings(folder / "config.yaml")
    steps, scalars = read_metrics(folder / "metrics.jsonl")
    synthetic = Path(synthetic) if synthetic is not None else folder / "synthetic"
    return Run(
        folder=folder,
        settings=settings,
        settings_hash=settings_hash,
        provenance=_read_json(folder / "provenance.json") or {},
        finished=_read_json(folder / "finished.json"),
        steps=steps,
        scalars=scalars,
        architecture=_read_json(folder / "architecture.json"),
        synthetic=synthetic if (synthetic / "manifest.json").is_file() else None,
    )


def _read_settings(path: Path) -> tuple[dict[str, Any], str]:
    """Returns (settings, SHA-256 of the file); empty if there is no file."""
    if not path.is_file():
        return {}, ""
    content = path.read_bytes()
    try:
        settings = yaml.safe_load(content.decode("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable ({error}); the run directory is damaged") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path}: holds no settings; the run directory is damaged")
    return settings, hashlib.sha256(content).hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not readable ({error}); the run directory is damaged") from error
    return value if isinstance(value, dict) else {"value": value}


def read_metrics(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns ascending steps and the scalars at them; of a step that was logged twice the later line counts.

    Drops a last line that a killed run left half written; raises DataError for any other damaged line.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    by_step: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            by_step[int(values["step"])] = values
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is damaged ({error}); remove the line") from error
    steps = np.array(sorted(by_step), np.int64)
    names = sorted({name for values in by_step.values() for name in values if name != "step"})
    return steps, {name: np.array([_number(by_step[int(s)].get(name)) for s in steps]) for name in names}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return np.nan
    return float(value) if np.isfinite(value) else np.nan
