"""Tables 3, A.1 and B.1 of the paper from a study's comparison, our numbers beside the paper's.

Every source of the paper has its row, run or not. Without a study the rows come from segmentation results
(`study_rows.from_results`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from vesselgan.core.errors import DataError
from vesselgan.report import charts, paper
from vesselgan.report.markup import (
    NOT_RUN,
    Section,
    csv_text,
    figure,
    file_name,
    markdown,
    not_run,
    panels,
    table,
)
from vesselgan.report.study_notes import about, note_of, text_values
from vesselgan.report.study_rows import PRIVATE, completed, paper_scores
from vesselgan.report.tables import REGIONS

TABLES = {
    "Table 3": ("U-Nets trained on synthetic patches alone", ("synthetic", "real", "shuffled", "threshold")),
    "Table A.1": ("U-Nets trained on real and synthetic patches", ("both", "real")),
    "Table B.1": ("U-Nets trained on patches of differentially private GANs", (PRIVATE,)),
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
CSV_COLUMNS = ("source", "cohort", "region", "metric", "statistic", "patient", "number")


@dataclass(frozen=True)
class ScorePair:
    """One score of one source on one cohort, as text."""

    ours: str
    paper: str
    """Empty if the paper has none."""


@dataclass(frozen=True)
class SourceRow:
    title: str
    cells: list[ScorePair]


def comparisons(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the results of job `comparison`; raises DataError for one that lacks a key."""
    selected = [result for result in results if result.get("job") == "comparison"]
    for result in selected:
        if missing := [key for key in ("name", "cohorts", "seeds", "rows", "units", "unet_steps") if key not in result]:
            raise DataError(f"the comparison {result.get('name')!r} lacks {', '.join(missing)}; run its study again")
    return selected


def rows_of(comparison: dict[str, Any], kinds: tuple[str, ...], region: str, metrics: Iterable[str]) -> list[SourceRow]:
    """Returns the sources of these kinds, with a cell per cohort and metric."""
    rows = []
    for row in _of_kinds(comparison, kinds):
        title = row["title"]
        if row.get("privacy") and row["scores"]:
            title += _budget(row["privacy"])
        if row.get("label_threshold") is not None:
            title += f"; label threshold {row['label_threshold']:g}"
        cells = []
        for number, cohort in enumerate(comparison["cohorts"]):
            for metric in metrics:
                summary = _summary(row, cohort, region, metric)
                real = _real_mean(comparison, cohort, region, metric)
                ours = NOT_RUN if summary is None else _format(summary, metric, real, row)
                cells.append(ScorePair(ours, _format_paper(row, region, metric, number)))
        rows.append(SourceRow(title, cells))
    return rows


def _summary(row: dict[str, Any], cohort: str, region: str, metric: str) -> dict[str, Any] | None:
    summary: dict[str, Any] | None = row["scores"].get(cohort, {}).get(region, {}).get(metric)
    return summary


def _budget(privacy: dict[str, Any]) -> str:
    """The privacy budget that was spent; no epsilon if the noise is not secret."""
    spent = f"; epsilon {privacy['epsilon']:.3g} per {privacy['unit']} at delta {privacy['delta']:.2g}"
    if not privacy.get("is_key_secret", True):
        spent = "; no epsilon, as its noise seed is known"
    return f"{spent}; noise multiplier {privacy['noise_multiplier']:g}"


def _not_covered(comparison: dict[str, Any]) -> str:
    """A sentence on what no epsilon of these rows covers; empty if there is none."""
    texts = (text for row in comparison["rows"] for text in (row.get("privacy") or {}).get("not_covered", ()))
    distinct = "; ".join(dict.fromkeys(texts))
    return f"No epsilon covers: {distinct}." if distinct else ""


def _of_kinds(comparison: dict[str, Any], kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = [row for row in comparison["rows"] if row["kind"] in kinds]
    return sorted(rows, key=lambda row: kinds.index(row["kind"]))


def _gan_2d(comparison: dict[str, Any], name: str, region: str, metrics: list[str]) -> list[SourceRow]:
    """The 2D GAN that the paper's discussion compares with, in Table 3, intracranial."""
    if (name, region) != ("Table 3", "intracranial"):
        return []
    cells = [ScorePair("-", "") for _ in comparison["cohorts"] for _ in metrics]
    cells[0] = ScorePair("-", f"{paper.GAN_2D_DICE:.3f}")
    return [SourceRow("U-Net on a 2D GAN; Kossen 2021, for reference", cells)]


def _real_mean(comparison: dict[str, Any], cohort: str, region: str, metric: str) -> float | None:
    for row in comparison["rows"]:
        if row["name"] == "real" and (summary := _summary(row, cohort, region, metric)):
            return float(summary["mean"])
    return None


def _format(summary: dict[str, Any], metric: str, real: float | None, row: dict[str, Any]) -> str:
    text = _mean_and_median(summary, "; ")
    if summary["interval"] is not None:
        text += f"; [{summary['interval'][0]:.3f}, {summary['interval'][1]:.3f}]"
    if metric == "dice" and real and row["name"] != "real":
        text += f"; {summary['mean'] / real:.3f} of real"
    difference = summary["difference"]
    if difference is not None:
        text += f"; {difference['mean']:+.3f} to real"
        text += f" (p {difference['p_holm']:.3f})" if difference["p_holm"] is not None else ""
    return text


def _mean_and_median(summary: dict[str, Any], separator: str = ", ") -> str:
    sd = f" ({summary['sd']:.3f})" if summary["sd"] is not None else ""
    return f"{summary['mean']:.3f}{sd}{separator}median {summary['median']:.3f}"


def _format_paper(row: dict[str, Any], region: str, metric: str, number: int) -> str:
    """The paper's mean (SD) of this source: of PEGASUS for the first cohort, of 1000Plus for the second."""
    scores = paper_scores(row, region)
    if scores is None or metric not in SHOWN or number >= len(paper.COHORTS):
        return ""
    score = scores[2 * number + list(SHOWN).index(metric)]
    return f"{score.mean:.3f} ({score.sd:.3f})"


def _regions(comparison: dict[str, Any]) -> list[str]:
    """The regions that were scored; all if none was."""
    scored = {region for row in comparison["rows"] for scores in row["scores"].values() for region in scores}
    return [region for region in REGIONS if region in scored or not scored]


def _further_metrics(comparison: dict[str, Any], region: str) -> list[str]:
    """FURTHER, without the scores that no source has in this region."""
    scored = {m for row in comparison["rows"] for scores in row["scores"].values() for m in scores.get(region, {})}
    return [metric for metric in FURTHER if metric in scored]


def _columns(comparison: dict[str, Any], metrics: Iterable[str]) -> list[str]:
    names = SHOWN | FURTHER
    return [f"{cohort}: {names[metric]}" for cohort in comparison["cohorts"] for metric in metrics]


def format_markdown(comparison: dict[str, Any]) -> str:
    """The tables by region, the paper's number behind ours; then the further scores."""
    texts = [f"# {comparison['name']}", "", about(comparison).replace("<", "&lt;"), "", note_of(comparison), ""]
    full = completed(comparison)
    for name, (title, kinds) in TABLES.items():
        for region in _regions(comparison):
            rows = [*rows_of(full, kinds, region, SHOWN), *_gan_2d(full, name, region, list(SHOWN))]
            texts += _markdown_block(f"{name}: {title}, {REGIONS[region].lower()}", _columns(full, SHOWN), rows)
    for region in _regions(comparison):
        metrics = _further_metrics(comparison, region)
        rows = rows_of(comparison, ALL_KINDS, region, metrics)
        texts += _markdown_block(f"Further scores, {REGIONS[region].lower()}", _columns(comparison, metrics), rows)
    if note := _not_covered(comparison):
        texts.append(note)
    return "\n".join(texts)


def _markdown_block(title: str, columns: list[str], rows: list[SourceRow]) -> list[str]:
    texts = [
        [row.title, *(cell.ours + (f"; paper {cell.paper}" if cell.paper else "") for cell in row.cells)]
        for row in rows
    ]
    return [f"## {title}", "", markdown(["source", *columns], texts), ""]


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


def section(comparison: dict[str, Any], error_maps: dict[str, str] | None = None) -> Section:
    """Everything about one study: tables, box plots, and `error_maps`, HTML by the table that it belongs to."""
    full = completed(comparison)
    body = [f"<p>{escape(about(comparison))}</p>"]
    for name, (title, kinds) in TABLES.items():
        body.append(f"<h3>{escape(f'{name}: {title}')}</h3>")
        for region in _regions(comparison):
            rows = [*rows_of(full, kinds, region, SHOWN), *_gan_2d(full, name, region, list(SHOWN))]
            body.append(_html_table(_columns(full, SHOWN), rows, f"{name}, {REGIONS[region].lower()}"))
        body.append(_boxes(full, kinds, BOXES[name]) if name in BOXES else "")
        body.append((error_maps or {}).get(name, ""))
        if name == "Table B.1" and (note := _not_covered(comparison)):
            body.append(f'<p class="note">{escape(note)}</p>')
    if _of_kinds(comparison, ALL_KINDS):
        body.append("<h3>Further scores</h3>")
        for region in _regions(comparison):
            body += [_further_table(comparison, cohort, region) for cohort in comparison["cohorts"]]
    body.append(f'<p class="note">{escape(note_of(comparison))}</p><p class="note">{escape(text_values())}</p>')
    stem = f"study-{file_name(comparison['name'])}"
    files: dict[str, str | bytes] = {
        f"{stem}.md": format_markdown(comparison),
        f"{stem}.csv": csv_text(CSV_COLUMNS, csv_rows(comparison)),
    }
    title = "The paper's tables" if comparison["unet_steps"] is None else f"Study {comparison['name']}"
    return Section(title, "\n".join(body), files)


def _html_table(columns: list[str], rows: list[SourceRow], caption: str) -> str:
    body = ""
    for row in rows:
        cells = ""
        for cell in row.cells:
            first, small = _with_small(cell.ours)
            small += f'<small class="beside">paper {escape(cell.paper)}</small>' if cell.paper else ""
            span_class = ' class="notrun"' if cell.ours == NOT_RUN else ""
            cells += f"<td><span{span_class}>{first}</span>{small}</td>"
        body += f"<tr><th>{''.join(_with_small(row.title))}</th>{cells}</tr>"
    head = "".join(f"<th>{escape(text)}</th>" for text in columns)
    head = f"<caption><b>{escape(caption)}</b></caption><thead><tr><th></th>{head}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _further_table(comparison: dict[str, Any], cohort: str, region: str) -> str:
    """The further scores of one cohort: a row per score, a column per source; mean (SD), median."""
    sources = [row for row in _of_kinds(comparison, ALL_KINDS) if row["scores"].get(cohort, {}).get(region)]
    if not sources:
        return ""
    rows = []
    for metric in _further_metrics(comparison, region):
        summaries = [_summary(row, cohort, region, metric) for row in sources]
        rows.append([FURTHER[metric], *(NOT_RUN if s is None else _mean_and_median(s) for s in summaries)])
    caption = f"<b>{escape(f'{cohort}, {REGIONS[region].lower()}')}</b>: mean (SD), median"
    return table(caption, ["", *(row["name"] for row in sources)], rows)


def _with_small(text: str) -> tuple[str, str]:
    """Splits `a; b; c` into `a` and small lines of HTML."""
    first, *others = map(escape, text.split("; "))
    return first, "".join(f"<small>{other}</small>" for other in others)


def _boxes(comparison: dict[str, Any], kinds: tuple[str, ...], name: str) -> str:
    """Box plots over patients, a panel per cohort, region and score."""
    rows = _of_kinds(comparison, kinds)
    plots: list[tuple[str, str]] = []
    is_run = any(row["scores"] for row in _of_kinds(comparison, kinds[:1]))
    for cohort in comparison["cohorts"] if is_run else ():
        for region in _regions(comparison):
            for metric, score in SHOWN.items():
                summaries = {row["title"]: _summary(row, cohort, region, metric) for row in rows}
                boxes = [charts.Box(title, list(s["values"].values())) for title, s in summaries.items() if s]
                if boxes:
                    title = f"{cohort}, {REGIONS[region].lower()}: {score}"
                    high = 1.0 if metric == "dice" else None
                    plots.append((title, charts.box_plot(boxes, x_label=score, title=title, high=high)))
    if not plots:
        return not_run(f"{name}, distribution over patients: no U-Net of this table was scored")
    caption = "Median (line), quartiles (box), range (whiskers) over patients; each patient is the mean over seeds."
    return figure(f"{name}, distribution over patients", panels(plots), caption)
