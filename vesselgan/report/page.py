"""The report: one HTML file that opens offline, from results, run directories, shards and the cohort.

The answer comes first, then what it rests on, in the order of interest; the paper's tables are an appendix. What was
not run is named in a line.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Report
from vesselgan.core.atomic_io import write_bytes, write_text
from vesselgan.core.console import log
from vesselgan.core.errors import ResourceError, UsageError
from vesselgan.core.memory import format_bytes
from vesselgan.formats.cohort import training_shards
from vesselgan.formats.run_dir import check_distinct
from vesselgan.formats.shards import ShardSet
from vesselgan.report import (
    agreement,
    answer,
    cohorts,
    deviations,
    error_maps,
    heads,
    paper,
    provenance,
    samples,
    scores,
    table_1,
    table_3,
    table_3_notes,
    table_3_rows,
    tables,
    training,
)
from vesselgan.report.answer import Answer
from vesselgan.report.blocks import Block, Figure, Files, Section, file_name
from vesselgan.report.commands import Commands
from vesselgan.report.runs import Made, Run, gan_of, read_run
from vesselgan.viz.pages import render

PAGE, CHARTS = "index.html", "charts"
LARGE_PAGE = 20_000_000
"""Bytes above which browsers become slow."""

Results = list[dict[str, Any]]


def report(config: Report) -> Path:
    """Writes config.out/index.html, beside it tables (Markdown, CSV), figures (PNG) and charts (PNG, SVG).

    Returns the page's path. Raises UsageError for a missing run directory and for two of one name, DataError for a
    damaged result, run, shard or picture.
    """
    results = tables.read_results(config.results)
    if config.synthetic and len(config.synthetic) != len(config.runs):
        raise UsageError(f"synthetic: {len(config.synthetic)} folders for {len(config.runs)} runs; name one for each")
    synthetic: Sequence[str | None] = config.synthetic or [None] * len(config.runs)
    check_distinct(config.runs)
    runs = [read_run(folder, patches) for folder, patches in zip(config.runs, synthetic, strict=True)]
    head, sections = build(config, results, runs)
    files = _files(sections)
    files |= _charts([head.blocks, *(section.blocks for section in sections)])
    page = _page(config, results, head, sections)
    out = Path(config.out)
    try:
        write_all(out, page, files)
    except OSError as error:
        raise ResourceError(f"{out}: the report cannot be written ({error.strerror}); name another out=DIR") from error
    if (size := len(page.encode())) > LARGE_PAGE:
        log.warning(f"{out / PAGE} has {format_bytes(size)}; name fewer runs or cohorts in one report")
    log.info(f"wrote {out / PAGE}")
    return out / PAGE


def _files(sections: Sequence[Section]) -> Files:
    """Those of all sections. Raises UsageError for two of one name."""
    files: Files = {}
    for section in sections:
        if shared := sorted(files.keys() & section.files.keys()):
            raise UsageError(f"results: {shared[0]} would be written twice; give one of the studies another name")
        files |= section.files
    return files


def _charts(parts: Sequence[Sequence[Block]]) -> Files:
    """Every chart as PNG and SVG, numbered in the page's order."""
    figures = [block for blocks in parts for block in blocks if isinstance(block, Figure)]
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


def build(config: Report, results: Results, runs: list[Run]) -> tuple[Answer, list[Section]]:
    """Returns the head of the page and all sections in their order."""
    groups = _groups(results)
    own = cohorts.name_of(config.data)
    studies = [_with_models(study, runs) for study in table_3.comparisons(results)]
    singles = {group: _comparison_of(same, runs) for group, (same, _) in groups.items()}
    comparisons = [*studies, *singles.values()]
    comparisons.sort(key=lambda c: (table_3_rows.split_of(c) != "test", c["cohorts"][0] != own))
    real, galleries = read_galleries(config, comparisons, runs)
    commands = Commands.of(config, results)
    is_only = len(groups) < 2 and all(split == "test" for _, split in groups)
    scored = [
        scores.section(*group, *members, table_3_notes.bavd_notes(singles[group]), is_only=is_only, commands=commands)
        for group, members in groups.items()
    ]
    appendix = [_titled(table_3.section(single), single["name"], is_only) for single in singles.values()]
    if not comparisons:
        appendix = [table_3.section(_comparison_of([], runs))]
    agreed = agreement.section(results, comparisons)
    whole = heads.section(runs, config.data.cohort_dir)
    sections = [
        *map(table_3.section, studies),
        *scored,
        error_maps.section(comparisons, Path(config.error_maps) if config.error_maps else None, commands),
        samples.section(runs, real, galleries, results, commands),
        *([whole] if whole else []),
        table_1.section(results, runs, commands),
        *([agreed] if agreed else []),
        training.section(runs),
        cohorts.section([config.data.cohort_dir, *config.cohorts]),
        deviations.section(runs),
        *appendix,
        provenance.section(config, results, runs),
    ]
    return answer.answer(comparisons, runs, real, galleries, results, commands, home=own), sections


def _titled(section: Section, name: str, is_only: bool) -> Section:
    return section if is_only else replace(section, title=f"{section.title}, {name}")


def _comparison_of(results: Results, runs: Sequence[Run]) -> dict[str, Any]:
    """A comparison of segmentation results, without a study."""
    return table_3_rows.from_results(results, [*table_3.SHOWN, *table_3.FURTHER], _models(runs))


def _with_models(comparison: dict[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """A study's comparison, with the model of each run whose settings are not those of the variant that it names."""
    models = _models(runs)
    rows = []
    for row in comparison["rows"]:
        gan = gan_of(row.get("gan"))
        model = models.get(gan[0]) if gan else None
        is_changed = model not in (None, row.get("variant"))
        rows.append(row | {"variant": model, "title": f"{row['title']}; {model}"} if is_changed else row)
    return comparison | {"rows": rows}


def _models(runs: Sequence[Run]) -> dict[str, str | None]:
    """Run directory's name -> model."""
    return {run.folder.resolve().name: run.model for run in runs}


def _thresholds(comparisons: Results) -> dict[Made, float]:
    """GAN, by `gan_of`, -> label threshold that its U-Net learned with; of several the best of the first comparison."""
    thresholds: dict[Made, float] = {}
    for comparison in map(table_3_rows.in_paper_order, comparisons):
        for row in [row for rows in answer.by_kind(comparison).values() for row in rows]:
            gan = gan_of(row.get("gan"))
            if gan is not None and row.get("label_threshold") is not None:
                thresholds.setdefault(gan, row["label_threshold"])
    return thresholds


def _groups(results: Results) -> dict[tuple[str, str], tuple[Results, Results]]:
    """(cohort, split) -> the segmentation results that share a table, and those of other subjects; test first."""
    groups = sorted(tables.by_cohort(results).items(), key=lambda item: item[0][1] != "test")
    return {group: tables.of_same_subjects(members) for group, members in groups}


def read_galleries(
    config: Report, comparisons: Results, runs: Sequence[Run]
) -> tuple[samples.Gallery | None, dict[Path, samples.Gallery]]:
    """The real patches' gallery, and that of each run with patches. Raises UsageError for patches of other shapes."""
    real = training_shards(config.data.cohort_dir)
    for run in runs:
        _check_patches(run, real)
    return samples.read_galleries(runs, real, _thresholds(comparisons), config.data.label_threshold)


def _check_patches(run: Run, real: ShardSet | None) -> None:
    if run.synthetic is None or real is None:
        return
    shape = ShardSet(run.synthetic).patch_shape
    if tuple(shape) != tuple(real.patch_shape):
        raise UsageError(
            f"runs: {run.folder} has patches of {list(shape)} voxels, the training shards {real.folder} of "
            f"{list(real.patch_shape)}; name the data that the run was trained on"
        )


def _page(config: Report, results: Results, head: Answer, sections: Sequence[Section]) -> str:
    own = cohorts.name_of(config.data)
    chips = [f"cohort {own}", f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC"]
    cohort_names = {result["cohort"] for result in results if isinstance(result.get("cohort"), str)}
    cohort_names |= {cohort for comparison in table_3.comparisons(results) for cohort in comparison["cohorts"]}
    values = {
        "title": f"Synthetic vessel patches, cohort {own}",
        "shows_patients": cohorts.show_patients([config.data.cohort_dir, *config.cohorts], cohort_names),
        "head": head,
        "chips": chips,
        "sections": sections,
        "citation": paper.CITATION,
    }
    return render("vesselgan.report", "report.html", values)
