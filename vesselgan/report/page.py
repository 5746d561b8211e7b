"""The report: one HTML file that opens offline, from results, run directories, shards and the cohort.

What was not run is marked as such. Tables and figures have the paper's numbers.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Report
from vesselgan.core.atomic_io import write_bytes, write_text
from vesselgan.core.console import log
from vesselgan.core.errors import ResourceError, UsageError
from vesselgan.core.memory import format_bytes
from vesselgan.formats.cohort import shards_dir
from vesselgan.formats.shards import MANIFEST, ShardSet
from vesselgan.report import (
    agreement,
    cohorts,
    deviations,
    error_maps,
    paper,
    provenance,
    samples,
    scores,
    table_1,
    table_3,
    table_3_rows,
    tables,
    training,
)
from vesselgan.report.blocks import NOT_RUN, Figure, Files, Section, file_name
from vesselgan.report.runs import Run, gan_of, read_run
from vesselgan.viz.pages import render

PAGE, CHARTS = "index.html", "charts"
LARGE_PAGE = 20_000_000
"""Bytes above which browsers become slow."""

Results = list[dict[str, Any]]


def report(config: Report) -> Path:
    """Writes config.out/index.html, beside it tables (Markdown, CSV), figures (PNG) and charts (PNG, SVG).

    Returns the page's path. Raises UsageError for a missing run directory, DataError for a damaged result, run, shard
    or picture.
    """
    results = tables.read_results(config.results)
    if config.synthetic and len(config.synthetic) != len(config.runs):
        raise UsageError(f"synthetic: {len(config.synthetic)} folders for {len(config.runs)} runs; name one for each")
    synthetic: Sequence[str | None] = config.synthetic or [None] * len(config.runs)
    runs = [read_run(folder, patches) for folder, patches in zip(config.runs, synthetic, strict=True)]
    sections = build_sections(config, results, runs)
    files: Files = {name: content for section in sections for name, content in section.files.items()}
    files |= _charts(sections)
    page = _page(config.data.name, results, runs, sections)
    out = Path(config.out)
    try:
        write_all(out, page, files)
    except OSError as error:
        raise ResourceError(f"{out}: the report cannot be written ({error.strerror}); name another out=DIR") from error
    if (size := len(page.encode())) > LARGE_PAGE:
        log.warning(f"{out / PAGE} has {format_bytes(size)}; name fewer runs or cohorts in one report")
    log.info(f"wrote {out / PAGE}")
    return out / PAGE


def _charts(sections: Sequence[Section]) -> Files:
    """Every chart as PNG and SVG, numbered in the page's order."""
    figures = [block for section in sections for block in section.blocks if isinstance(block, Figure)]
    files: Files = {}
    for number, chart in enumerate((chart for figure in figures for chart in figure.charts), 1):
        stem = f"{CHARTS}/{number:02d}-{file_name(chart.title)[:60].lower()}"
        files |= {f"{stem}.png": chart.png, f"{stem}.svg": chart.svg}
    return files


def write_all(out: Path, page: str, files: Files) -> None:
    """Writes the files and then the page; removes numbered charts of an earlier report."""
    for path in (out / CHARTS).glob("[0-9][0-9]*-*.[ps][nv]g"):
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
    studies = table_3.comparisons(results)
    comparisons = studies or _comparisons_of([same for same, _ in groups.values()] or [[]], runs)
    if not groups and not studies:
        groups = {(config.data.name, "test"): ([], [])}
    is_only = len(groups) == 1
    sections = [scores.section(*group, *members, is_only=is_only) for group, members in groups.items()]
    maps_dir = Path(config.error_maps) if config.error_maps else None
    for comparison in comparisons:
        maps, files = error_maps.section(comparison, maps_dir)
        study = table_3.section(comparison, maps)
        title = study.title if studies or len(comparisons) == 1 else f"{study.title}, {comparison['name']}"
        sections.append(Section(title, study.blocks, study.files | files))
    return [
        *sections,
        table_1.section(results, runs),
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
    metrics = [*table_3.SHOWN, *table_3.FURTHER]
    return [table_3_rows.from_results(members, metrics, variant) for members in groups]


def _thresholds(comparisons: Results) -> dict[tuple[str, str], float]:
    """GAN, by `gan_of`, -> its label threshold in a study."""
    rows = [row for comparison in comparisons for row in comparison["rows"] if row.get("label_threshold") is not None]
    return {gan: row["label_threshold"] for row in rows if (gan := gan_of(row.get("gan"))) is not None}


def _groups(results: Results) -> dict[tuple[str, str], tuple[Results, Results]]:
    """(cohort, split) -> the segmentation results that share a table, and those of other subjects."""
    return {group: tables.of_same_subjects(members) for group, members in tables.by_cohort(results).items()}


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
    aims = [aim for same, _ in groups for aim in tables.aims(tables.segmentation_scores(same))]
    passed = sum(aim.verdict == "pass" for aim in aims)
    missing = sum(aim.verdict == NOT_RUN for aim in aims)
    chips = [f"cohort {cohort}"] + ([f"{passed} of {len(aims)} aims reached"] if aims else [])
    chips += [f"{missing} not run"] if missing else []
    chips += [", ".join([f"GAN {run.title}", *(f"warning: {text}" for text in run.warnings)]) for run in runs]
    chips.append(f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC")
    title = f"Synthetic vessel patches: {cohort}"
    values = {"title": title, "chips": chips, "sections": sections, "citation": paper.CITATION}
    return render("vesselgan.report", "report.html", values)
