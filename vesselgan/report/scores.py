"""The section about segmentation: the table, the aims, a dot for every test subject."""

from collections.abc import Iterable
from html import escape
from typing import Any

from vesselgan.report import charts, tables
from vesselgan.report.markup import counted
from vesselgan.report.tables import METRICS, NOT_RUN, PAPER, PAPER_SOURCES, REGIONS, Aim, Cell, Row

MAX_IN_CELL = 4  # test subjects whose values fit below the mean


def section(cohort: str, split: str, rows: list[Row], notes: Iterable[str] = ()) -> str:
    """Everything about one cohort's results as HTML; `notes` are texts below the table."""
    subjects = sorted({subject for row in rows for subject in row.subjects})
    return "\n".join(
        [
            _table(cohort, split, rows, subjects),
            *(f'<p class="note">{escape(note)}</p>' for note in notes),
            "" if len(subjects) <= MAX_IN_CELL else _long_table(rows),
            _aims(tables.aims(rows)),
            _dots(rows),
        ]
    )


def notes_of(kept: Iterable[dict[str, Any]], left_out: Iterable[dict[str, Any]]) -> list[str]:
    """What a reader of the table must know of the results that are in it, and of those that may not be."""
    notes = []
    if names := [str(result.get("title") or result["name"]) for result in left_out]:
        notes.append(
            f"Left out, for they were scored on different subjects: {'; '.join(names)}. Score all on the same."
        )
    by_overlap: dict[str, list[str]] = {}
    for result in kept:
        if "segmented_with" in result:
            overlap = str(result.get("training_overlap") or "not checked")
            by_overlap.setdefault(overlap, []).append(str(result.get("title") or result["name"]))
    told = [f"{overlap} ({'; '.join(names)})" for overlap, names in by_overlap.items()]
    return notes + ([f"Training volumes among the scored ones: {'. '.join(told)}."] if told else [])


def _table(cohort: str, split: str, rows: list[Row], subjects: list[str]) -> str:
    inside = 0 < len(subjects) <= MAX_IN_CELL
    heads = "".join(f'<th class="part" colspan="{len(METRICS)}">{escape(name)}</th>' for name in REGIONS.values())
    names = "".join(f"<th{_part(i)}>{escape(name)}</th>" for _ in REGIONS for i, name in enumerate(METRICS.values()))
    people = counted(len(subjects), f"{split} subject") if subjects else f"{split} subjects"
    return (
        f'<div class="scroll"><table><caption>Cohort <b>{escape(cohort)}</b>: mean (SD) over {escape(people)}'
        f", below it the median{' and each subject' if inside else ''}. Dice: overlap with the label, 1 is perfect. "
        "bAVD: balanced average distance between label and prediction, 0 is perfect.</caption>"
        f"<thead><tr><th></th>{heads}</tr><tr><th></th>{names}</tr></thead>"
        f"<tbody>{''.join(_line(row, inside) for row in rows)}</tbody></table></div>"
        '<p class="note">Best global threshold: one intensity for all volumes, fitted on the validation subjects; what '
        "is reached without learning. Labels shuffled: the same synthetic images, each with another one's label; what "
        "is reached when labels do not fit. The paper's numbers come from its own cohort of patients (PEGASUS) and say "
        "what to expect at full size; it gives no millimetres.</p>"
    )


def _part(i: int) -> str:
    return ' class="part"' if i == 0 else ""


def _line(row: Row, inside: bool) -> str:
    if row.name == PAPER:
        return _paper_line(row)
    # One for both regions, or one for each; a probability or an intensity.
    cuts = list(dict.fromkeys(f"{cut:.1f}" if cut > 1 else f"{cut:g}" for cut in row.cuts.values()))
    cut = f"<small>cut at {' and '.join(cuts)}</small>" if cuts else ""
    cells = "".join(
        f"<td{_part(i)}>{_cell(row.cell(region, metric), inside)}</td>"
        for region in REGIONS
        for i, metric in enumerate(METRICS)
    )
    return f"<tr><th>{escape(row.title)}{cut}</th>{cells}</tr>"


def _cell(cell: Cell | None, inside: bool) -> str:
    if cell is None:
        return f'<span class="notrun">{NOT_RUN}</span>'
    values = cell.values.items() if inside else ()
    lines = "".join(f"<small>{escape(subject)} {tables.format_value(value)}</small>" for subject, value in values)
    middle = "" if cell.median is None else f"<small>median {cell.median:.3f}</small>"
    return f"{tables.format_cell(cell)}{middle}{lines}"


def _paper_line(row: Row) -> str:
    labels = "".join(f"<small>{'on real' if s == 'real' else f'on synthetic by {s}'}</small>" for s in PAPER_SOURCES)
    cells = []
    for region in REGIONS:
        for i, metric in enumerate(METRICS):
            found = row.cells.get((region, metric), {})
            texts = [tables.format_cell(found[source]) if source in found else "–" for source in PAPER_SOURCES]
            cells.append(f"<td{_part(i)}>&nbsp;{''.join(f'<small>{text}</small>' for text in texts)}</td>")
    return f'<tr class="paper"><th>{escape(row.title)}{labels}</th>{"".join(cells)}</tr>'


def _long_table(rows: list[Row]) -> str:
    """Every subject's values, for cohorts with more subjects than a cell holds."""
    names = "".join(f"<th{_part(i)}>{escape(name)}</th>" for _ in REGIONS for i, name in enumerate(METRICS.values()))
    heads = "".join(f'<th class="part" colspan="{len(METRICS)}">{escape(name)}</th>' for name in REGIONS.values())
    lines = []
    for row in rows:
        for i, subject in enumerate(row.subjects):
            cells = [row.cell(region, metric) for region in REGIONS for metric in METRICS]
            texts = [tables.format_value(c.values[subject]) if c and subject in c.values else "–" for c in cells]
            columns = "".join(f"<td{_part(j % len(METRICS))}>{text}</td>" for j, text in enumerate(texts))
            first = escape(row.title) if i == 0 else ""
            lines.append(f"<tr><th>{first}</th><td>{escape(subject)}</td>{columns}</tr>")
    return (
        '<div class="scroll"><table><caption>The same, by subject.</caption>'
        f"<thead><tr><th></th><th></th>{heads}</tr><tr><th></th><th>subject</th>{names}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _aims(aims: list[Aim]) -> str:
    lines = []
    for aim in aims:
        kind = aim.verdict if aim.verdict in ("pass", "fail") else "idle"
        measured = "–" if aim.measured is None else f"{aim.measured:.3f}"
        lines.append(
            f'<tr><td><span class="verdict {kind}">{aim.verdict}</span></td><td>{escape(aim.text)}</td>'
            f'<td class="number">{measured}</td><td class="number">at least {aim.target:.2f}</td></tr>'
        )
    return (
        "<h3>Aims</h3><p>Set before the run, judged on mean Dice, printed as they come out.</p>"
        '<div class="scroll"><table class="plain"><thead><tr><th></th><th>aim</th><th class="number">measured</th>'
        f'<th class="number">wanted</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _dots(rows: list[Row]) -> str:
    panels = []
    for region, name in REGIONS.items():
        lines = []
        for row in rows:
            if row.name == PAPER:
                continue
            cell = row.cell(region, "dice")
            known = [value for value in cell.values.values() if value is not None] if cell else []
            lines.append(charts.Dots(row.title, known, cell.mean if cell else None))
        plot = charts.dot_plot(lines, x_label="Dice", title=f"Dice of every test subject, {name.lower()}")
        panels.append(f'<div class="panel"><h4>{escape(name)}</h4>{plot}</div>')
    return (
        f'<figure><div class="two">{"".join(panels)}</div><figcaption><b>Dice of every subject</b> (dots), mean (bar). '
        "To read it: training on synthetic pairs is worth something where its dots lie right of the threshold's and of "
        "the shuffled control's; the gap to the dots of real is its price.</figcaption></figure>"
    )
