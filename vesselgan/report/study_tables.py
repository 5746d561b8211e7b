"""Tables 3, A.1 and B.1 of the paper from a study's comparison, our numbers beside the paper's.

Every source of the paper has its row: what was not run says so. Without a study, segmentation results fill what they
can (`from_results`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from vesselgan.core.errors import DataError
from vesselgan.report import charts, paper
from vesselgan.report.markup import (
    NOT_RUN,
    Part,
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

FORMAT_VERSION = 1
TABLES = {
    "Table 3": ("U-Nets trained on synthetic patches alone", ("synthetic", "real", "shuffled", "threshold")),
    "Table A.1": ("U-Nets trained on real and synthetic patches", ("both", "real")),
    "Table B.1": ("U-Nets trained on patches of differentially private GANs", (PRIVATE,)),
}
"""The paper's name -> what it is about, and the kinds of sources in it in their order."""
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
NO_EPSILON = "No epsilon covers: "


@dataclass(frozen=True)
class Cell:
    """One score of one source on one cohort."""

    ours: str
    paper: str
    """Empty where the paper has none."""


@dataclass(frozen=True)
class Line:
    title: str
    cells: list[Cell]


def comparisons(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of job `comparison`; DataError for one that lacks what it must have."""
    found = [result for result in results if result.get("job") == "comparison"]
    for result in found:
        if lacking := [key for key in ("name", "cohorts", "seeds", "rows", "units", "unet_steps") if key not in result]:
            raise DataError(f"the comparison {result.get('name')!r} lacks {', '.join(lacking)}; run its study again")
    return found


def lines_of(comparison: dict[str, Any], kinds: tuple[str, ...], region: str, metrics: Iterable[str]) -> list[Line]:
    """The sources of these kinds: for every cohort a cell per metric."""
    lines = []
    for row in _of_kinds(comparison, kinds):
        cut = f"; label threshold {row['label_threshold']:g}" if row.get("label_threshold") is not None else ""
        budget = _budget(row["privacy"]) if row.get("privacy") and row["scores"] else ""
        cells = []
        for number, cohort in enumerate(comparison["cohorts"]):
            for metric in metrics:
                facts = row["scores"].get(cohort, {}).get(region, {}).get(metric)
                ours = (
                    NOT_RUN if facts is None else _ours(facts, metric, _real(comparison, cohort, region, metric), row)
                )
                cells.append(Cell(ours, _papers(row, region, metric, number)))
        lines.append(Line(row["title"] + budget + cut, cells))
    return lines


def _budget(privacy: dict[str, Any]) -> str:
    """What a private GAN spent, with the unit that its epsilon speaks of; nothing where its noise is no secret."""
    spent = f"; epsilon {privacy['epsilon']:.3g} per {privacy['unit']} at delta {privacy['delta']:.2g}"
    if not privacy.get("is_key_secret", True):
        spent = "; no epsilon, as its noise seed is known"
    return f"{spent}; noise multiplier {privacy['noise_multiplier']:g}"


def _not_covered(comparison: dict[str, Any]) -> list[str]:
    """What no epsilon of these rows speaks of."""
    texts = (text for row in comparison["rows"] for text in (row.get("privacy") or {}).get("not_covered", ()))
    return list(dict.fromkeys(texts))


def _of_kinds(comparison: dict[str, Any], kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = [row for row in comparison["rows"] if row["kind"] in kinds]
    return sorted(rows, key=lambda row: kinds.index(row["kind"]))


def _gan_2d(comparison: dict[str, Any], name: str, region: str, metrics: list[str]) -> list[Line]:
    """The 2D GAN's row that the paper's discussion compares with, where it belongs."""
    if (name, region) != ("Table 3", "intracranial"):
        return []
    first, *others = [Cell("-", "") for _ in comparison["cohorts"] for _ in metrics]
    return [Line("U-Net on a 2D GAN; Kossen 2021, for reference", [Cell("-", f"{paper.GAN_2D_DICE:.3f}"), *others])]


def _real(comparison: dict[str, Any], cohort: str, region: str, metric: str) -> float | None:
    for row in comparison["rows"]:
        if row["name"] == "real":
            return row["scores"].get(cohort, {}).get(region, {}).get(metric, {}).get("mean")
    return None


def _ours(facts: dict[str, Any], metric: str, real: float | None, row: dict[str, Any]) -> str:
    text = _middle(facts, "; ")
    if facts["interval"] is not None:
        text += f"; [{facts['interval'][0]:.3f}, {facts['interval'][1]:.3f}]"
    if metric == "dice" and real and row["name"] != "real":
        text += f"; {facts['mean'] / real:.3f} of real"
    difference = facts["difference"]
    if difference is not None:
        text += f"; {difference['mean']:+.3f} to real"
        text += f" (p {difference['p_holm']:.3f})" if difference["p_holm"] is not None else ""
    return text


def _papers(row: dict[str, Any], region: str, metric: str, number: int) -> str:
    """The paper's mean (SD) for this source: of PEGASUS for the first cohort, of 1000Plus for the second."""
    found = paper_scores(row, region)
    if found is None or metric not in SHOWN or number >= len(paper.COHORTS):
        return ""
    score = found[2 * number + list(SHOWN).index(metric)]
    return f"{score.mean:.3f} ({score.sd:.3f})"


def _regions(comparison: dict[str, Any]) -> list[str]:
    """Those that were scored; all where nothing was."""
    scored = {region for row in comparison["rows"] for scores in row["scores"].values() for region in scores}
    return [region for region in REGIONS if region in scored or not scored]


def _scored(comparison: dict[str, Any], region: str, metrics: Iterable[str]) -> list[str]:
    """Those of the metrics that a source has in this region: false positives by side of the mask have one alone."""
    found = {m for row in comparison["rows"] for scores in row["scores"].values() for m in scores.get(region, {})}
    return [metric for metric in metrics if metric in found]


def _heads(comparison: dict[str, Any], metrics: Iterable[str]) -> list[str]:
    names = {**SHOWN, **FURTHER}
    return [f"{cohort}: {names[metric]}" for cohort in comparison["cohorts"] for metric in metrics]


def format_markdown(comparison: dict[str, Any]) -> str:
    """The tables, a block per region, the paper's number behind ours; then the further scores."""
    texts = [f"# {comparison['name']}", "", about(comparison).replace("<", "&lt;"), "", note_of(comparison), ""]
    full = completed(comparison)
    for name, title, kinds, metrics in _blocks():
        shown = full if name else comparison
        for region in _regions(comparison):
            metrics = metrics if name else _scored(comparison, region, FURTHER)
            lines = [*lines_of(shown, kinds, region, metrics), *_gan_2d(shown, name, region, metrics)]
            texts_of = [
                [line.title, *(cell.ours + (f"; paper {cell.paper}" if cell.paper else "") for cell in line.cells)]
                for line in lines
            ]
            head = f"{name}: {title}" if name else title
            texts += [f"## {head}, {REGIONS[region].lower()}", ""]
            texts += [markdown(["source", *_heads(shown, metrics)], texts_of), ""]
    if left := _not_covered(comparison):
        texts += [NO_EPSILON + "; ".join(left) + "."]
    return "\n".join(texts)


def _blocks() -> list[tuple[str, str, tuple[str, ...], list[str]]]:
    """(the paper's name, title, kinds, metrics) of every table."""
    blocks = [(name, title, kinds, list(SHOWN)) for name, (title, kinds) in TABLES.items()]
    return [*blocks, ("", "Further scores", ALL_KINDS, list(FURTHER))]


def format_csv(comparison: dict[str, Any]) -> str:
    """Long form, one number a line at full precision, all scores."""
    lines = [
        [row["name"], cohort, region, metric, *numbers]
        for row in comparison["rows"]
        for cohort, regions in row["scores"].items()
        for region, metrics in regions.items()
        for metric, facts in metrics.items()
        for numbers in _numbers(facts)
    ]
    return csv_text(["source", "cohort", "region", "metric", "statistic", "patient", "number"], lines)


def _numbers(facts: dict[str, Any]) -> list[tuple[str, str, float | None]]:
    numbers = [("value", patient, value) for patient, value in facts["values"].items()]
    numbers += [(key, "", facts.get(key)) for key in ("mean", "sd", "sd_seeds", "median", "n", "num_seeds")]
    low, high = facts["interval"] or (None, None)
    numbers += [("interval_low", "", low), ("interval_high", "", high)]
    if facts["difference"] is not None:
        numbers += [(f"difference_{key}", "", facts["difference"][key]) for key in ("mean", "sd", "p", "p_holm")]
    return numbers


def section(comparison: dict[str, Any], pictures: dict[str, str] | None = None) -> Part:
    """Everything about one study: the tables, box plots, and `pictures`, HTML by the table that it belongs to."""
    full = completed(comparison)
    body = [f"<p>{escape(about(comparison))}</p>"]
    for name, title, kinds, metrics in _blocks():
        shown = full if name else comparison
        if not _of_kinds(shown, kinds):
            continue
        body.append(f"<h3>{escape(f'{name}: {title}' if name else title)}</h3>")
        for region in _regions(comparison):
            if not name:
                body += [_turned(comparison, cohort, region) for cohort in comparison["cohorts"]]
                continue
            lines = [*lines_of(shown, kinds, region, metrics), *_gan_2d(shown, name, region, metrics)]
            body.append(_html_table(_heads(shown, metrics), lines, f"{name}, {REGIONS[region].lower()}"))
        body.append(_boxes(full, kinds, BOXES[name]) if name in BOXES else "")
        body.append((pictures or {}).get(name, ""))
        if name == "Table B.1" and (left := _not_covered(comparison)):
            body.append(f'<p class="note">{escape(NO_EPSILON + "; ".join(left))}.</p>')
    body.append(f'<p class="note">{escape(note_of(comparison))}</p><p class="note">{escape(text_values())}</p>')
    stem = f"study-{file_name(comparison['name'])}"
    files = {f"{stem}.md": format_markdown(comparison), f"{stem}.csv": format_csv(comparison)}
    title = "The paper's tables" if comparison["unet_steps"] is None else f"Study {comparison['name']}"
    return Part(title, "\n".join(body), dict(files))


def _html_table(heads: list[str], lines: list[Line], caption: str) -> str:
    body = ""
    for line in lines:
        cells = ""
        for cell in line.cells:
            first, small = _with_small(cell.ours)
            small += f'<small class="beside">paper {escape(cell.paper)}</small>' if cell.paper else ""
            kind = ' class="notrun"' if cell.ours == NOT_RUN else ""
            cells += f"<td><span{kind}>{first}</span>{small}</td>"
        body += f"<tr><th>{''.join(_with_small(line.title))}</th>{cells}</tr>"
    named = "".join(f"<th>{escape(head)}</th>" for head in heads)
    head = f"<caption><b>{escape(caption)}</b></caption><thead><tr><th></th>{named}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _turned(comparison: dict[str, Any], cohort: str, region: str) -> str:
    """The further scores of one cohort: a line per score, a column per source; mean (SD), median."""
    rows = [row for row in _of_kinds(comparison, ALL_KINDS) if row["scores"].get(cohort, {}).get(region)]
    lines = []
    for metric in _scored(comparison, region, FURTHER):
        found = [row["scores"][cohort][region].get(metric) for row in rows]
        lines.append([FURTHER[metric], *(NOT_RUN if facts is None else _middle(facts) for facts in found)])
    caption = f"<b>{escape(f'{cohort}, {REGIONS[region].lower()}')}</b>: mean (SD), median"
    return table(caption, ["", *(row["name"] for row in rows)], lines) if rows else ""


def _middle(facts: dict[str, Any], between: str = ", ") -> str:
    spread = f" ({facts['sd']:.3f})" if facts["sd"] is not None else ""
    return f"{facts['mean']:.3f}{spread}{between}median {facts['median']:.3f}"


def _with_small(text: str) -> tuple[str, str]:
    """The first part of `a; b; c`, and the others as small lines."""
    first, *rest = map(escape, text.split("; "))
    return first, "".join(f"<small>{part}</small>" for part in rest)


def _boxes(comparison: dict[str, Any], kinds: tuple[str, ...], name: str) -> str:
    """Box plots over patients, a panel per cohort, region and score."""
    shown: list[tuple[str, str]] = []
    is_run = any(row["scores"] for row in _of_kinds(comparison, kinds[:1]))
    for cohort in comparison["cohorts"] if is_run else ():
        for region in _regions(comparison):
            for metric, score in SHOWN.items():
                found = {
                    row["title"]: row["scores"].get(cohort, {}).get(region, {}).get(metric)
                    for row in _of_kinds(comparison, kinds)
                }
                boxes = [charts.Box(title, list(facts["values"].values())) for title, facts in found.items() if facts]
                if boxes:
                    title = f"{cohort}, {REGIONS[region].lower()}: {score}"
                    high = 1.0 if metric == "dice" else None
                    shown.append((title, charts.box_plot(boxes, x_label=score, title=title, high=high)))
    if not shown:
        return not_run(f"{name}, spread over patients: no U-Net of this table was scored")
    caption = (
        "Median (line), quartiles (box), smallest and largest patient (whiskers); each patient is the mean over seeds."
    )
    return figure(f"{name}, spread over patients", panels(shown), caption)
