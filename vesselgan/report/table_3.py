"""Tables 3, A.1 and B.1 of the paper from a study's comparison, our numbers beside the paper's.

Sources of the paper that were not run share one line. Without a study the rows come from segmentation results
(`table_3_rows.from_results`).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from vesselgan.core.errors import DataError
from vesselgan.report import paper
from vesselgan.report.blocks import (
    MIN_FOR_SPREAD,
    NOT_RUN,
    Block,
    Figure,
    Heading,
    Panel,
    Section,
    Table,
    Text,
    file_name,
    markdown,
    mean_sd,
    not_run,
    not_run_rows,
    numbers_csv,
    text_frame,
)
from vesselgan.report.table_3_notes import about, bavd_notes, budget, note_of, text_values
from vesselgan.report.table_3_rows import PRIVATE, in_paper_order, missing_titles, paper_scores
from vesselgan.report.tables import REGIONS
from vesselgan.viz import plots

TABLES = {
    "Table 3": ("U-Nets trained on synthetic patches alone", ("synthetic", "real", "shuffled", "threshold")),
    "Table A.1": ("U-Nets trained on real and synthetic patches", ("both", "real")),
    "Table B.1": ("U-Nets trained on patches of differentially private generators", (PRIVATE,)),
}
"""The paper's name -> title, and the kinds of sources in it in their order."""
BOXES = {"Table 3": "Figure 6", "Table A.1": "Figure A.1"}
ALL_KINDS = ("real", "synthetic", "both", PRIVATE, "shuffled", "threshold")
SHOWN = {"dice": "Dice", "bavd_voxels": "bAVD (voxels)"}
FURTHER = {
    "bavd_mm": "bAVD (mm)",
    "truth_to_predicted_voxels": "label to prediction (voxels)",
    "predicted_to_truth_voxels": "prediction to label (voxels)",
    "avd_voxels": "AVD (voxels)",
    "hd95_mm": "HD95 (mm)",
    "centreline_dice": "clDice",
    "component_error": "parts wrong",
    "precision": "precision",
    "recall": "recall",
    "false_positive_inside_mm3": "false inside mask (mm3)",
    "false_positive_outside_mm3": "false outside mask (mm3)",
}
DIGITS = {"component_error": 1, "false_positive_inside_mm3": 0, "false_positive_outside_mm3": 0}
"""Of the scores that are no fractions of one."""
CSV_COLUMNS = ("source", "cohort", "region", "metric", "statistic", "patient", "number")


def comparisons(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the results of job `comparison`; raises DataError for one that lacks a key."""
    selected = [result for result in results if result.get("job") == "comparison"]
    for result in selected:
        name = result.get("name")
        if missing := [key for key in ("name", "cohorts", "seeds", "rows", "units", "unet_steps") if key not in result]:
            raise DataError(f"the comparison {name!r} lacks {', '.join(missing)}; remove it and run its study again")
        try:
            is_whole = bool(result["cohorts"]) and all(_is_row(row) for row in result["rows"])
        except (AttributeError, TypeError, KeyError):
            is_whole = False
        if not is_whole:
            raise DataError(f"the comparison {name!r} has no cohort or damaged rows; remove it, run its study again")
    return selected


def _is_row(row: dict[str, Any]) -> bool:
    if not all("all" in regions and all("dice" in s for s in regions.values()) for regions in row["scores"].values()):
        return False
    summaries = [s for regions in row["scores"].values() for scores in regions.values() for s in scores.values()]
    numbers = [s[key] for s in summaries for key in ("mean", "median", "n")]
    numbers += [value for s in summaries for value in s["values"].values()]
    texts = [row[key] for key in ("name", "kind", "title")]
    return all(isinstance(text, str) for text in texts) and all(isinstance(n, int | float) for n in numbers)


def table_of(comparison: dict[str, Any], name: str, region: str) -> pd.DataFrame:
    """Texts of this table: per cohort and metric of SHOWN our number, and the paper's below it."""
    rows = []
    for row in _of_kinds(comparison, TABLES[name][1]):
        title = row["title"].replace("; ", "\n")
        if row.get("privacy"):
            title += f"\n{budget(row['privacy'])}\nnoise multiplier {row['privacy']['noise_multiplier']:g}"
        if row.get("label_threshold") is not None:
            title += f"\nlabel threshold {row['label_threshold']:g}"
        cells = []
        for number, cohort in enumerate(comparison["cohorts"]):
            for metric in SHOWN:
                summary = _summary(row, cohort, region, metric)
                real = _real_mean(comparison, cohort, region, metric)
                ours = NOT_RUN if summary is None else _format(summary, metric, real, row)
                cells.append(ours + _format_paper(row, region, metric, number))
        rows.append([title, *cells])
    if (name, region) == ("Table 3", "intracranial"):
        # The 2D GAN that the paper's discussion compares with.
        dashes = ["-"] * (len(_columns(comparison)) - 1)
        rows.append(["U-Net on a 2D GAN\nKossen 2021, for reference", f"-\npaper {paper.GAN_2D_DICE:.3f}", *dashes])
    return text_frame(rows, ["source", *_columns(comparison)])


def _summary(row: dict[str, Any], cohort: str, region: str, metric: str) -> dict[str, Any] | None:
    summary: dict[str, Any] | None = row["scores"].get(cohort, {}).get(region, {}).get(metric)
    return summary


def _not_covered(comparison: dict[str, Any]) -> str:
    """A sentence on what no epsilon of these rows covers; empty if there is none."""
    texts = (text for row in comparison["rows"] for text in (row.get("privacy") or {}).get("not_covered", ()))
    distinct = "; ".join(dict.fromkeys(texts))
    return f"No epsilon covers: {distinct}." if distinct else ""


def _of_kinds(comparison: dict[str, Any], kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = [row for row in comparison["rows"] if row["kind"] in kinds]
    return sorted(rows, key=lambda row: kinds.index(row["kind"]))


def _real_mean(comparison: dict[str, Any], cohort: str, region: str, metric: str) -> float | None:
    for row in comparison["rows"]:
        if row["kind"] == "real" and (summary := _summary(row, cohort, region, metric)):
            return float(summary["mean"])
    return None


def _format(summary: dict[str, Any], metric: str, real: float | None, row: dict[str, Any]) -> str:
    lines = _mean_and_median(summary)
    if summary["interval"] is not None:
        lines.append(f"[{summary['interval'][0]:.3f}, {summary['interval'][1]:.3f}]")
    if metric == "dice" and real and row["kind"] != "real":
        lines.append(f"{summary['mean'] / real:.3f} of real")
    if (difference := summary["difference"]) is not None:
        p = f" (p {difference['p_holm']:.3f})" if difference["p_holm"] is not None else ""
        lines.append(f"{difference['mean']:+.3f} to real{p}")
    return "\n".join(lines)


def _mean_and_median(summary: dict[str, Any], digits: int = 3) -> list[str]:
    median = [f"median {summary['median']:.{digits}f}"] if summary["n"] >= MIN_FOR_SPREAD else []
    return [mean_sd(summary["mean"], summary["sd"], digits, n=summary["n"]), *median]


def _format_paper(row: dict[str, Any], region: str, metric: str, number: int) -> str:
    """The paper's mean (SD) of this source: of PEGASUS for the first cohort, of 1000Plus for the second."""
    named = paper_scores(row, region)
    if named is None or number >= len(paper.COHORTS):
        return ""
    name, scores = named
    return f"\n{name} {mean_sd(*scores[2 * number + list(SHOWN).index(metric)])}"


def _regions(comparison: dict[str, Any]) -> list[str]:
    """The regions that were scored; all if none was."""
    scored = {region for row in comparison["rows"] for scores in row["scores"].values() for region in scores}
    return [region for region in REGIONS if region in scored or not scored]


def _further_metrics(comparison: dict[str, Any], region: str) -> list[str]:
    """FURTHER, without the scores that no source has in this region."""
    scored = {m for row in comparison["rows"] for scores in row["scores"].values() for m in scores.get(region, {})}
    return [metric for metric in FURTHER if metric in scored]


def _columns(comparison: dict[str, Any]) -> list[str]:
    return [f"{cohort}: {name}" for cohort in comparison["cohorts"] for name in SHOWN.values()]


def csv_rows(comparison: dict[str, Any]) -> Iterator[list[object]]:
    """Long form under CSV_COLUMNS, one number per line, all scores."""
    for row in comparison["rows"]:
        for cohort, regions in row["scores"].items():
            for region, metrics in regions.items():
                for metric, summary in metrics.items():
                    for numbers in _numbers(summary):
                        yield [row["name"], cohort, region, metric, *numbers]


def _numbers(summary: dict[str, Any]) -> list[tuple[str, str, float | None]]:
    numbers = [("value", patient, value) for patient, value in summary["values"].items()]
    numbers += [(key, "", summary.get(key)) for key in ("mean", "sd", "sd_seeds", "median", "n", "num_seeds")]
    low, high = summary["interval"] or (None, None)
    numbers += [("interval_low", "", low), ("interval_high", "", high)]
    if summary["difference"] is not None:
        numbers += [(f"difference_{key}", "", summary["difference"][key]) for key in ("mean", "sd", "p", "p_holm")]
    return numbers


def section(comparison: dict[str, Any]) -> Section:
    """Everything about one study: tables and box plots."""
    comparison = in_paper_order(comparison)
    blocks: list[Block] = [Text(about(comparison))]
    for name, (title, kinds) in TABLES.items():
        blocks.append(Heading(f"{name}: {title}"))
        if _of_kinds(comparison, kinds[:1]):
            for region in _regions(comparison):
                blocks.append(Table(table_of(comparison, name, region), f"{name}, {REGIONS[region].lower()}"))
            blocks += _boxes(comparison, kinds, BOXES[name]) if name in BOXES else []
        blocks += not_run_rows(missing_titles(comparison, kinds))
        if name == "Table B.1" and (note := _not_covered(comparison)):
            blocks.append(Text(note, style="note"))
    if _of_kinds(comparison, ALL_KINDS):
        blocks.append(Heading("Further scores"))
        for region in _regions(comparison):
            tables = (_further_table(comparison, cohort, region) for cohort in comparison["cohorts"])
            blocks += [table for table in tables if table is not None]
    notes = [*bavd_notes(comparison), note_of(comparison), text_values()]
    blocks += [Text(note, style="note") for note in notes]
    stem = f"study-{file_name(comparison['name'])}"
    files: dict[str, str | bytes] = {
        f"{stem}.md": markdown(blocks),
        f"{stem}.csv": numbers_csv(csv_rows(comparison), CSV_COLUMNS),
    }
    title = "Appendix: the paper's tables" if comparison["unet_steps"] is None else f"Study {comparison['name']}"
    return Section(title, blocks, files)


def _further_table(comparison: dict[str, Any], cohort: str, region: str) -> Table | None:
    """The further scores of one cohort: a row per score, a column per source; mean (SD), median."""
    sources = [row for row in _of_kinds(comparison, ALL_KINDS) if row["scores"].get(cohort, {}).get(region)]
    if not sources:
        return None
    rows = []
    for metric in _further_metrics(comparison, region):
        summaries = [_summary(row, cohort, region, metric) for row in sources]
        digits = DIGITS.get(metric, 3)
        texts = [NOT_RUN if s is None else "\n".join(_mean_and_median(s, digits)) for s in summaries]
        rows.append([FURTHER[metric], *texts])
    frame = text_frame(rows, ["score", *(row["name"] for row in sources)])
    return Table(frame, f"{cohort}, {REGIONS[region].lower()}")


def _boxes(comparison: dict[str, Any], kinds: tuple[str, ...], name: str) -> list[Block]:
    """Box plots over patients, a panel per cohort, region and score; none of fewer than MIN_FOR_SPREAD patients."""
    rows = _of_kinds(comparison, kinds)
    panels = []
    for cohort in comparison["cohorts"]:
        for region in _regions(comparison):
            for metric, score in SHOWN.items():
                summaries = [(row["title"], _summary(row, cohort, region, metric)) for row in rows]
                boxes = [
                    (title, list(s["values"].values())) for title, s in summaries if s and s["n"] >= MIN_FOR_SPREAD
                ]
                if boxes:
                    title = f"{cohort}, {REGIONS[region].lower()}: {score}"
                    high = 1.0 if metric == "dice" else None
                    panels.append(Panel([plots.boxes(boxes, x_label=score, title=title, high=high)]))
    if not panels:
        return [not_run(f"{name}, distribution over patients: a box needs {MIN_FOR_SPREAD} patients")]
    caption = "Median (line), quartiles (box), range (whiskers) over patients; each patient is the mean over seeds."
    return [Figure(f"{name}, distribution over patients", panels, caption)]
