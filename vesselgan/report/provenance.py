"""What made the page and what went into it: versions, dates, hashes."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from vesselgan.config.compose import config_hash
from vesselgan.config.schema import Report
from vesselgan.core.version import __version__
from vesselgan.report.markup import Part, counted, table
from vesselgan.report.runs import Run

# Of a provenance, what a co-author may see: versions and hardware, not commands (they hold paths).
SHOWN = ("time", "vesselgan", "python", "packages", "hardware")
PACKAGES = ("numpy", "scipy", "h5py", "pillow")
HEADS = ("", "made with", "settings or inputs (SHA-256)")


def section(config: Report, results: Sequence[dict[str, Any]], runs: Sequence[Run]) -> Part:
    versions = "; ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    made_by = f"{now}; vesselgan {__version__}; python {platform.python_version()}; {versions}"
    settings = f"settings {config_hash(config)}, label threshold {config.data.label_threshold:g}"
    lines = [("This page", made_by, settings)]
    for run in runs:
        lines.append((f"GAN {run.title}", _facts(run.provenance), f"settings {run.settings_hash[:12] or 'unknown'}"))
    for result in results:
        title = str(result.get("title") or result.get("name") or result.get("job") or "result")
        inputs = result.get("inputs") if isinstance(result.get("inputs"), dict) else {}
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        lines.append(
            (f"Result: {title}", _facts(result.get("provenance")), f"{counted(len(inputs), 'input')} {digest[:12]}")
        )
    return Part("Provenance", table("", HEADS, lines, classes="plain provenance"))


def _facts(provenance: Any) -> str:
    """The facts that are SHOWN, in one line."""
    if not isinstance(provenance, dict):
        return "unknown"
    facts = []
    for key in SHOWN:
        value = provenance.get(key)
        if isinstance(value, dict):
            facts += [f"{name} {entry}" for name, entry in value.items() if entry is not None]
        elif value not in (None, ""):
            facts.append(_utc(str(value)) if key == "time" else f"{key} {value}")
    return "; ".join(facts) or "unknown"


def _utc(time: str) -> str:
    """A time as this page writes it; as it stands where it is none."""
    try:
        return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return time
