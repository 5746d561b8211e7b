"""The report: one HTML file that opens offline, from results, run directories, shards and the cohort.

The page fetches nothing: pictures are inline PNG, charts inline SVG, fonts the reader's own. Every text from a file is
escaped. What was not run is marked as such. Tables and figures have the paper's numbers.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Report
from vesselgan.core.atomic_io import write_bytes, write_text
from vesselgan.core.errors import ResourceError, UsageError
from vesselgan.core.version import __version__
from vesselgan.formats.cohort import shards_dir
from vesselgan.formats.shards import MANIFEST, ShardSet
from vesselgan.report import (
    agreement,
    cohorts,
    deviations,
    error_maps,
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
from vesselgan.report.markup import NOT_RUN, Section, csv_text, file_name
from vesselgan.report.runs import Run, gan_of, read_run
from vesselgan.report.style import PRINT_RULES, RULES
from vesselgan.viz import html_page

PAGE, CHARTS = "index.html", "charts"
LARGE_PAGE = 20_000_000
"""Bytes above which browsers become slow."""

Results = list[dict[str, Any]]


def report(config: Report) -> Path:
    """Writes config.out/index.html, beside it tables as Markdown and CSV and figures as PNG; returns the page's path.

    Raises UsageError for a missing run directory, DataError for a damaged result, run, shard or picture.
    """
    results = tables.read_results(config.results)
    if config.synthetic and len(config.synthetic) != len(config.runs):
        raise UsageError(f"synthetic: {len(config.synthetic)} folders for {len(config.runs)} runs; name one for each")
    synthetic: Sequence[str | None] = config.synthetic or [None] * len(config.runs)
    runs = [read_run(folder, patches) for folder, patches in zip(config.runs, synthetic, strict=True)]
    sections = build_sections(config, results, runs)
    files: dict[str, str | bytes] = {name: content for section in sections for name, content in section.files.items()}
    html = "".join(section.html for section in sections)
    files |= {f"{CHARTS}/{name}": png for name, png in raster.charts_of(html)}
    page = _page(config.data.name, results, runs, sections)
    out = Path(config.out)
    try:
        write_all(out, page, files)
    except OSError as error:
        raise ResourceError(f"{out}: the report cannot be written ({error.strerror}); name another out=DIR") from error
    if (size := len(page.encode())) > LARGE_PAGE:
        print(f"warning: {out / PAGE} has {size / 1e6:.0f} MB; name fewer runs or cohorts in one report", flush=True)
    print(f"wrote {out / PAGE}", flush=True)
    return out / PAGE


def write_all(out: Path, page: str, files: dict[str, str | bytes]) -> None:
    """Writes the files and then the page; removes numbered charts of an earlier report."""
    for path in (out / CHARTS).glob("[0-9][0-9]-*.png"):
        if f"{CHARTS}/{path.name}" not in files:
            path.unlink()
    for name, content in files.items():
        write_bytes(out / name, content.encode() if isinstance(content, str) else content)
    write_text(out / PAGE, page)


def build_sections(config: Report, results: Results, runs: list[Run]) -> list[Section]:
    """Returns all sections in the order of the page."""
    real = _training_shards(config)
    for run in runs:
        _check_patches(run, real)
    groups = _groups(results)
    studies = study_tables.comparisons(results)
    comparisons = studies or _comparisons_of([same for same, _ in groups.values()] or [[]], runs)
    if not groups and not studies:
        groups = {(config.data.name, "test"): ([], [])}
    sections = [_segmentation(group, *members, len(groups)) for group, members in groups.items()]
    maps_dir = Path(config.error_maps) if config.error_maps else None
    for comparison in comparisons:
        maps, files = error_maps.section(comparison, maps_dir)
        study = study_tables.section(comparison, maps)
        title = study.title if studies or len(comparisons) == 1 else f"{study.title}, {comparison['name']}"
        sections.append(Section(title, study.html, study.files | files))
    return [
        *sections,
        image_quality.section(results, runs),
        agreement.section(results, comparisons),
        samples.section(runs, real, _thresholds(comparisons), config.data.label_threshold, results),
        training.section(runs),
        cohorts.section([config.data.cohort_dir, *config.cohorts]),
        deviations.section(runs),
        provenance.section(config, results, runs),
    ]


def _comparisons_of(groups: Sequence[Results], runs: Sequence[Run]) -> Results:
    """Comparisons from segmentation results, without a study; if there is one run, it is their GAN."""
    variant = runs[0].variant if len(runs) == 1 else None
    metrics = [*study_tables.SHOWN, *study_tables.FURTHER]
    return [study_rows.from_results(members, metrics, variant) for members in groups]


def _thresholds(comparisons: Results) -> dict[tuple[str, str], float]:
    """GAN, by `gan_of`, -> its label threshold in a study."""
    rows = [row for comparison in comparisons for row in comparison["rows"] if row.get("label_threshold") is not None]
    return {gan: row["label_threshold"] for row in rows if (gan := gan_of(row.get("gan"))) is not None}


def _groups(results: Results) -> dict[tuple[str, str], tuple[Results, Results]]:
    """(cohort, split) -> the segmentation results that share a table, and those of other subjects."""
    return {group: tables.of_same_subjects(members) for group, members in tables.by_cohort(results).items()}


def _segmentation(group: tuple[str, str], same: Results, others: Results, num_groups: int) -> Section:
    rows = tables.segmentation_table(same)
    stem = "segmentation" if num_groups == 1 else "-".join(["segmentation", *map(file_name, group)])
    title = "Segmentation of held-out volumes" + (f", {group[0]}" if num_groups > 1 else "")
    files: dict[str, str | bytes] = {
        f"{stem}.md": tables.format_markdown(rows),
        f"{stem}.csv": csv_text(tables.CSV_COLUMNS, tables.csv_rows(rows)),
    }
    return Section(title, scores.section(*group, rows, scores.notes_of(same, others)), files)


def _training_shards(config: Report) -> ShardSet | None:
    folder = shards_dir(config.data.cohort_dir, "gan", "train")
    return ShardSet(folder) if (folder / MANIFEST).is_file() else None


def _check_patches(run: Run, real: ShardSet | None) -> None:
    if run.synthetic is None or real is None:
        return
    shape = ShardSet(run.synthetic).patch_shape
    if tuple(shape) != tuple(real.patch_shape):
        raise UsageError(
            f"runs: {run.folder} has patches of {list(shape)} voxels, the training shards {real.folder} of "
            f"{list(real.patch_shape)}; name the data that the run was trained on"
        )


def _page(cohort: str, results: Results, runs: Sequence[Run], sections: Sequence[Section]) -> str:
    groups = _groups(results).values()
    aims = [aim for same, _ in groups for aim in tables.aims(tables.segmentation_table(same))]
    passed = sum(aim.verdict == "pass" for aim in aims)
    missing = sum(aim.verdict == NOT_RUN for aim in aims)
    chips = [f"cohort {cohort}"] + ([f"{passed} of {len(aims)} aims reached"] if aims else [])
    chips += [f"{missing} not run"] if missing else []
    chips += [f"GAN {run.title}" for run in runs]
    chips.append(f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC")
    title = f"Synthetic vessel patches: {cohort}"
    contents = "".join(f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>' for section in sections)
    body = "\n".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>\n{section.html}</section>'
        for section in sections
    )
    frame = f"""<header>
<h1>{escape(title)}</h1>
<p class="lead">A GAN generates 3D patches of TOF angiography with their vessel labels. Does a U-Net trained on
them alone segment the vessels of whole volumes that neither network has seen?</p>
<ul class="chips">{"".join(f"<li>{escape(chip)}</li>" for chip in chips)}</ul>
<nav><ol>{contents}</ol></nav>
<p class="note">The paper's numbers stand beside ours for its tables and figures ({escape(paper.CITATION)}).</p>
</header>
<main>
{body}
</main>
<footer>vesselgan {escape(__version__)}. The paper: {escape(paper.CITATION)}.</footer>"""
    return html_page.document(title, RULES, frame, print_rules=PRINT_RULES)
