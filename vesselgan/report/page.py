"""The report: one HTML file that opens offline, made from results, run directories, shards and the cohort.

Nothing on the page is fetched from anywhere: pictures are inline PNG, charts inline SVG, fonts the reader's own. Every
text that comes from a file is escaped. Parts that were not run say so. Tables and figures that the paper has bear its
numbers.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Report
from vesselgan.core.atomic_io import write_bytes, write_text
from vesselgan.core.errors import ResourceError, UsageError
from vesselgan.core.version import __version__
from vesselgan.formats.shards import MANIFEST, ShardSet
from vesselgan.report import (
    agreement,
    cohorts,
    deviations,
    errors,
    image_quality,
    paper,
    provenance,
    raster,
    samples,
    scores,
    study_rows,
    study_tables,
    tables,
    training,
)
from vesselgan.report.markup import Part, file_name
from vesselgan.report.runs import Run, gan_of, read_run
from vesselgan.report.style import PRINT_RULES, RULES
from vesselgan.viz import html_page

PAGE, CHARTS = "index.html", "charts"
MOST_BYTES = 20_000_000
LEFT_OUT = '<span class="notrun">left out to keep the page small; it lies beside the page as a PNG</span>'


def report(config: Report) -> Path:
    """Write config.out/index.html and beside it the tables as Markdown and CSV and the figures as PNG; the page's path.

    UsageError for a run directory that is not there, DataError for a damaged result, run, shard or picture.
    """
    results = tables.read_results(config.results)
    if config.synthetic and len(config.synthetic) != len(config.runs):
        raise UsageError(f"synthetic: {len(config.synthetic)} folders for {len(config.runs)} runs; name one for each")
    runs = [read_run(*both) for both in zip(config.runs, config.synthetic or [None] * len(config.runs), strict=True)]
    parts = sections(config, results, runs)
    files: dict[str, str | bytes] = {name: content for part in parts for name, content in part.files.items()}
    files |= {f"{CHARTS}/{name}": png for name, png in raster.charts_of("".join(part.html for part in parts))}
    page = fitted(_shell(config.data.name, results, runs, parts))
    out = Path(config.out)
    try:
        write_all(out, page, files)
    except OSError as error:
        raise ResourceError(f"{out}: the report cannot be written ({error.strerror}); name another out=DIR") from error
    print(f"wrote {out / PAGE}", flush=True)
    return out / PAGE


def write_all(out: Path, page: str, files: dict[str, str | bytes]) -> None:
    """The page, last, and the files beside it; numbered charts of an earlier report go."""
    for path in (out / CHARTS).glob("[0-9][0-9]-*.png"):
        if f"{CHARTS}/{path.name}" not in files:
            path.unlink()
    for name, content in files.items():
        write_bytes(out / name, content.encode() if isinstance(content, str) else content)
    write_text(out / PAGE, page)


def sections(config: Report, results: list[dict[str, Any]], runs: list[Run]) -> list[Part]:
    """All sections in the order of the page."""
    real = _training_shards(config)
    for run in runs:
        _check_patches(run, real)
    threshold, groups = config.data.label_threshold, _groups(results)
    studies = study_tables.comparisons(results)
    comparisons = studies or _comparisons_of([kept for kept, _ in groups.values()] or [[]], runs)
    if not groups and not studies:
        groups = {(config.data.name, "test"): ([], [])}
    parts = [_segmentation(group, *members, len(groups)) for group, members in groups.items()]
    folder = Path(config.error_maps) if config.error_maps else None
    for comparison in comparisons:
        maps, files = errors.section(comparison, folder)
        tabled = study_tables.section(comparison, maps)
        title = tabled.title if studies or len(comparisons) == 1 else f"{tabled.title}, {comparison['name']}"
        parts.append(Part(title, tabled.html, tabled.files | files))
    return [
        *parts,
        image_quality.section(results, runs),
        agreement.section(results, comparisons),
        samples.section(runs, real, _thresholds(comparisons), threshold, results),
        training.section(runs),
        cohorts.section([config.data.cohort_dir, *config.cohorts]),
        deviations.section(runs),
        provenance.section(config, results, runs),
    ]


def _comparisons_of(groups: Sequence[list[dict[str, Any]]], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Without a study: what segmentation results fill of its tables. Their GAN is the run, where one alone is named."""
    variant = runs[0].variant if len(runs) == 1 else None
    metrics = [*study_tables.SHOWN, *study_tables.FURTHER]
    return [study_rows.from_results(members, metrics, variant) for members in groups]


def _thresholds(comparisons: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """GAN, by `gan_of`, -> where a study's labels of it begin."""
    rows = [row for comparison in comparisons for row in comparison["rows"] if row.get("label_threshold") is not None]
    return {gan: row["label_threshold"] for row in rows if (gan := gan_of(row.get("gan"))) is not None}


def _groups(results: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """(cohort, split) -> the segmentation results that share a table, and those of other subjects."""
    return {group: tables.of_same_subjects(members) for group, members in tables.by_cohort(results).items()}


def _segmentation(
    group: tuple[str, str], kept: list[dict[str, Any]], left_out: list[dict[str, Any]], num_groups: int
) -> Part:
    rows = tables.segmentation_table(kept)
    stem = "segmentation" if num_groups == 1 else "-".join(["segmentation", *map(file_name, group)])
    title = "Segmentation of held-out volumes" + (f", {group[0]}" if num_groups > 1 else "")
    files = {f"{stem}.md": tables.format_markdown(rows), f"{stem}.csv": tables.format_csv(rows)}
    return Part(title, scores.section(*group, rows, scores.notes_of(kept, left_out)), dict(files))


def _training_shards(config: Report) -> ShardSet | None:
    folder = Path(config.data.cohort_dir) / "shards" / "gan" / "train"
    return ShardSet(folder) if (folder / MANIFEST).is_file() else None


def _check_patches(run: Run, real: ShardSet | None) -> None:
    if run.synthetic is None or real is None:
        return
    made = ShardSet(run.synthetic).patch_shape
    if tuple(made) != tuple(real.patch_shape):
        raise UsageError(
            f"runs: {run.folder} made patches of {list(made)}, the training shards of data={real.folder} have "
            f"{list(real.patch_shape)}; name the data that the run was trained on"
        )


def fitted(page: str) -> str:
    """The page within MOST_BYTES: the largest pictures and charts give way, and the page says so in their place.

    Where tables alone are more, nothing is taken from them: the page and the console say how large it is.
    """
    excess = len(page.encode()) - MOST_BYTES
    if excess <= 0:
        return page
    pictures = set(re.findall(r'<img src="data:[^>]*>|<svg.*?</svg>', page, re.DOTALL))
    for text in sorted(pictures, key=lambda text: (-len(text), text)):
        if excess <= 0:
            break
        excess -= page.count(text) * (len(text) - len(LEFT_OUT))
        page = page.replace(text, LEFT_OUT)
    if len(page.encode()) > MOST_BYTES:
        told = f"this page has {len(page.encode()) / 1e6:.0f} MB, more than {MOST_BYTES / 1e6:.0f}: its tables are long"
        print(f"note: {told}", flush=True)
        page = page.replace("<main>", f'<main>\n<p class="notrun">Note: {told}.</p>', 1)
    return page


def _shell(cohort: str, results: list[dict[str, Any]], runs: Sequence[Run], parts: Sequence[Part]) -> str:
    """The page around its sections."""
    groups = _groups(results).values()
    aims = [aim for kept, _ in groups for aim in tables.aims(tables.segmentation_table(kept))]
    passed = sum(aim.verdict == "pass" for aim in aims)
    missing = sum(aim.verdict == tables.NOT_RUN for aim in aims)
    chips = [f"cohort {cohort}"] + ([f"{passed} of {len(aims)} aims reached"] if aims else [])
    chips += [f"{missing} not run"] if missing else []
    chips += [f"GAN {run.title}" for run in runs]
    chips.append(f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC")
    title = f"Synthetic vessel patches: {cohort}"
    contents = "".join(f'<li><a href="#{part.anchor}">{escape(part.title)}</a></li>' for part in parts)
    body = "\n".join(
        f'<section id="{part.anchor}"><h2>{escape(part.title)}</h2>\n{part.html}</section>' for part in parts
    )
    frame = f"""<header>
<h1>{escape(title)}</h1>
<p class="lead">A GAN makes 3D patches of TOF angiography together with their vessel labels. Does a U-Net
that was trained on them alone segment the vessels of whole volumes that neither network has seen?</p>
<ul class="chips">{"".join(f"<li>{escape(chip)}</li>" for chip in chips)}</ul>
<nav><ol>{contents}</ol></nav>
<p class="note">Tables and figures that the paper has bear its numbers ({escape(paper.CITATION)}).</p>
</header>
<main>
{body}
</main>
<footer>vesselgan {escape(__version__)}. The paper: {escape(paper.CITATION)}.</footer>"""
    return html_page.document(title, RULES, frame, print_rules=PRINT_RULES)
