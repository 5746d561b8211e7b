"""Provenance of the page, its runs and its results: versions, dates, hashes."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from vesselgan.config.compose import config_hash
from vesselgan.config.schema import Report
from vesselgan.core.console import counted
from vesselgan.core.version import __version__
from vesselgan.report.blocks import Section, Table, text_frame
from vesselgan.report.runs import Run

KEYS = ("time", "vesselgan", "python", "packages", "hardware")
"""Of a provenance record: versions and hardware, but no commands, which hold paths."""
PACKAGES = ("numpy", "scipy", "h5py", "pandas", "matplotlib", "pillow")
COLUMNS = ("", "made with", "settings or inputs (SHA-256)")


def section(config: Report, results: Sequence[dict[str, Any]], runs: Sequence[Run]) -> Section:
    versions = "; ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    made_with = f"{now}; vesselgan {__version__}; python {platform.python_version()}; {versions}"
    settings = f"settings {config_hash(config)}"
    rows = [("This page", made_with, settings)]
    for run in runs:
        rows.append(
            (f"Generator {run.title}", _summary(run.provenance), f"settings {run.settings_hash[:12] or 'unknown'}")
        )
    for result in results:
        title = str(result.get("title") or result.get("name") or result.get("job") or "result")
        inputs = result.get("inputs")
        if not isinstance(inputs, dict):
            inputs = {}
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        hashed = f"{counted(len(inputs), 'input')} {digest[:12]}"
        rows.append((f"Result: {title}", _summary(result.get("provenance")), hashed))
    return Section("Provenance", [Table(text_frame(rows, COLUMNS), style="plain provenance")])


def _summary(provenance: Any) -> str:
    """The values of KEYS in one line."""
    if not isinstance(provenance, dict):
        return "unknown"
    texts = []
    for key in KEYS:
        value = provenance.get(key)
        if isinstance(value, dict):
            texts += [f"{name} {entry}" for name, entry in value.items() if entry is not None]
        elif value not in (None, ""):
            texts.append(_utc(str(value)) if key == "time" else f"{key} {value}")
    return "; ".join(texts) or "unknown"


def _utc(time: str) -> str:
    """The time as this page writes it; other texts unchanged."""
    try:
        return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return time
