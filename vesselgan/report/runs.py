"""A GAN's run directory as the report reads it: settings, logged scalars, architecture, synthetic shards."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.config.compose import compose
from vesselgan.core.errors import UsageError
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import MANIFEST

DEFINING = ("condition", "loss", "generator_norm", "critic_norm")
OPTIONAL = ("penalty_weight", "flow", "dp")
"""Settings that make a variant: their values; whether there is such a part."""
Made = tuple[str, str, str]
"""Run, its weights' sha256, and how heads were made; empty where it made patches."""


@dataclass(frozen=True)
class Run:
    """A run directory; a field is empty if its file does not exist."""

    folder: Path
    settings: dict[str, Any]
    settings_hash: str
    """SHA-256 of the file that holds them."""
    provenance: dict[str, Any]
    finished: dict[str, Any] | None
    steps: np.ndarray
    scalars: dict[str, np.ndarray]
    """By name, one value per entry of `steps`; NaN if it was not logged or not finite."""
    synthetic: Path | None
    architecture: dict[str, Any] | None
    """The networks, layer by layer."""
    warnings: list[str]
    """See `warnings_of`."""

    @property
    def variant(self) -> str | None:
        variant = self.settings.get("variant")
        name = variant.get("name") if isinstance(variant, dict) else None
        return str(name) if name else None

    @functools.cached_property
    def model(self) -> str | None:
        """The variant, `changed` where it is no longer what its name says, whatever its size, rates and precision."""
        own, named = self.settings.get("variant"), configured(self.variant)
        if named is None or not isinstance(own, dict):
            return self.variant
        is_changed = any(own[key] != getattr(named.variant, key) for key in DEFINING if key in own)
        is_changed |= any(bool(own[key]) != bool(getattr(named.variant, key)) for key in OPTIONAL if key in own)
        return f"{self.variant}, changed" if is_changed else self.variant

    @property
    def title(self) -> str:
        name = self.model
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


def configured(variant: str | None) -> Any | None:
    """The configuration of a generator with this variant as configs/ has it; None if it has none of this name."""
    if not re.fullmatch(r"\w+", variant or ""):
        return None
    try:
        return compose("train_gan", [f"variant={variant}"])
    except UsageError:
        return None


def gan_of(record: Any) -> Made | None:
    """What made some patches, from their record; None if it lacks run or weights."""
    if not isinstance(record, dict) or not record.get("run") or not record.get("weights_sha256"):
        return None
    heads = f"heads, noise {record.get('noise')}" if "shape" in record else ""  # patches have the network's
    return str(record["run"]), str(record["weights_sha256"]), heads


def read_run(folder: str | Path, synthetic: str | Path | None = None) -> Run:
    """Reads a run directory; `synthetic` is the folder of its patches, by default FOLDER/synthetic.

    Raises UsageError if the folder does not exist, DataError for a file in it that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"runs: {folder} does not exist; name the run directories of GANs")
    run = RunDir(folder)
    settings, settings_hash = run.settings()
    metrics = run.metrics()
    names = sorted({name for entry in metrics for name in entry if name != "step"})
    patches = Path(synthetic) if synthetic is not None else run.synthetic
    return Run(
        folder=folder,
        settings=settings,
        settings_hash=settings_hash,
        provenance=run.provenance(),
        finished=run.finished(),
        steps=np.array([int(entry["step"]) for entry in metrics], np.int64),
        scalars={name: np.array([_number(entry.get(name)) for entry in metrics]) for name in names},
        architecture=run.architecture(),
        warnings=warnings_of(metrics),
        synthetic=patches if (patches / MANIFEST).is_file() else None,
    )


def warnings_of(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """A text for each kind of warning that training logged: how often, and when last."""
    texts = []
    for key in sorted({name for entry in metrics for name in entry if name.startswith("warning/")}):
        measured = [entry for entry in metrics if key in entry]
        if steps := [int(entry["step"]) for entry in measured if entry[key]]:
            name = key.removeprefix("warning/").replace("_", " ")
            texts.append(f"{name} in {len(steps)} of {len(measured)} measurements, last at step {steps[-1]:,}")
    return texts


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return np.nan
    return float(value) if np.isfinite(value) else np.nan
