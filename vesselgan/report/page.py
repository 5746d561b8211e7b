"""The report: one HTML file that opens offline, made from results, run directories and shards.

Nothing on the page is fetched from anywhere: pictures are inline PNG, charts inline SVG, fonts the reader's own. Every
text that comes from a file is escaped. Parts that were not run say so.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from vesselgan import __version__
from vesselgan.config.compose import config_hash
from vesselgan.config.schema import Report
from vesselgan.errors import ResourceError, UsageError
from vesselgan.files import write_text
from vesselgan.report import paper, samples, scores, tables
from vesselgan.report.runs import Run, read_run
from vesselgan.report.style import SHEET
from vesselgan.shards import MANIFEST, ShardSet

PAGE = "index.html"
# Of a provenance, what a co-author may see: versions and hardware, not commands (they hold paths).
SHOWN = ("time", "vesselgan", "python", "packages", "hardware")
PACKAGES = ("numpy", "scipy", "h5py", "pillow")


def report(config: Report) -> Path:
    """Write config.out/index.html and beside it each table as Markdown and CSV; the path of the page.

    UsageError for a run directory that is not there, DataError for a damaged result, run or shard.
    """
    results = tables.read_results(config.results)
    runs = [read_run(folder) for folder in config.runs]
    training = _training_shards(config)
    out = Path(config.out)
    for run in runs:
        _check_patches(run, training)
    groups = tables.by_cohort(results) or {(config.data.name, "test"): []}
    rows = {group: tables.segmentation_table(members) for group, members in groups.items()}
    body = [scores.section(*group, rows_of) for group, rows_of in rows.items()]
    if not runs:
        body.append('<h2>GAN</h2><p class="notrun">not run: no run directory was given (runs=[DIR])</p>')
    body += [samples.section(run, training, config.data.label_threshold) for run in runs]
    body.append(_provenance(config, results, runs))
    page = _shell(config.data.name, rows, runs, "\n".join(body))
    try:
        for (cohort, split), rows_of in rows.items():
            stem = "segmentation" if len(rows) == 1 else f"segmentation-{_file_name(cohort)}-{_file_name(split)}"
            write_text(out / f"{stem}.md", tables.format_markdown(rows_of))
            write_text(out / f"{stem}.csv", tables.format_csv(rows_of))
        write_text(out / PAGE, page)
    except OSError as error:
        raise ResourceError(f"{out}: the report cannot be written ({error.strerror}); name another out=DIR") from error
    print(f"wrote {out / PAGE}", flush=True)
    return out / PAGE


def _training_shards(config: Report) -> ShardSet | None:
    folder = Path(config.data.cohort_dir) / "shards" / "gan" / "train"
    return ShardSet(folder) if (folder / MANIFEST).is_file() else None


def _check_patches(run: Run, training: ShardSet | None) -> None:
    if run.synthetic is None or training is None:
        return
    made = ShardSet(run.synthetic).patch_shape
    if tuple(made) != tuple(training.patch_shape):
        raise UsageError(
            f"runs: {run.folder} made patches of {list(made)}, the training shards of data={training.folder} have "
            f"{list(training.patch_shape)}; name the data that the run was trained on"
        )


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)


def _shell(cohort: str, rows: dict[tuple[str, str], list[tables.Row]], runs: Sequence[Run], body: str) -> str:
    """The page around its sections. The content policy forbids any fetch, should an address ever slip in."""
    aims = [aim for rows_of in rows.values() for aim in tables.aims(rows_of)]
    passed = sum(aim.verdict == "pass" for aim in aims)
    missing = sum(aim.verdict == tables.NOT_RUN for aim in aims)
    chips = [f"cohort {cohort}", f"{passed} of {len(aims)} aims reached"]
    chips += [f"{missing} not run"] if missing else []
    chips += [f"GAN {run.title}" for run in runs]
    chips.append(f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC")
    title = f"Synthetic vessel patches: {cohort}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{SHEET}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lead">A GAN makes 3D patches of TOF angiography together with their vessel labels. Does a U-Net
that was trained on them alone segment the vessels of whole volumes that neither network has seen?</p>
<ul class="chips">{"".join(f"<li>{escape(chip)}</li>" for chip in chips)}</ul>
</header>
<main>
{body}
</main>
<footer>vesselgan {escape(__version__)}. The paper: {escape(paper.CITATION)}.</footer>
</body>
</html>
"""


def _provenance(config: Report, results: Sequence[dict[str, Any]], runs: Sequence[Run]) -> str:
    """What made the page and what went into it: versions, dates, hashes."""
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
        lines.append((f"Result: {title}", _facts(result.get("provenance")), f"{len(inputs)} input files {digest[:12]}"))
    cells = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td><td>{escape(c)}</td></tr>" for a, b, c in lines)
    return (
        '<h2>Provenance</h2><div class="scroll"><table class="plain provenance"><thead><tr><th></th><th>made with</th>'
        f"<th>settings or inputs (SHA-256)</th></tr></thead><tbody>{cells}</tbody></table></div>"
    )


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
            facts.append(str(value) if key == "time" else f"{key} {value}")
    return "; ".join(facts) or "unknown"
