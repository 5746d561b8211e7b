"""The segmentation section: the table, the aims, a dot plot of every test subject."""

from collections.abc import Iterable
from html import escape
from typing import Any

from vesselgan.report import charts, tables
from vesselgan.report.markup import NOT_RUN, counted, figure, panels
from vesselgan.report.tables import METRICS, PAPER, PAPER_SOURCES, REGIONS, Aim, Cell, Row

MAX_IN_CELL = 4  # subjects whose values fit below the mean


def section(cohort: str, split: str, rows: list[Row], notes: Iterable[str] = ()) -> str:
    """One cohort's results as HTML; `notes` are texts below the table."""
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


def notes_of(same: Iterable[dict[str, Any]], others: Iterable[dict[str, Any]]) -> list[str]:
    """Notes on the results that were left out, and on training volumes among the scored ones."""
    notes = []
    if titles := [_title(result) for result in others]:
        notes.append(f"Left out: {'; '.join(titles)}. They were scored on different subjects; score all on the same.")
    by_overlap: dict[str, list[str]] = {}
    for result in same:
        if "segmented_with" in result:
            by_overlap.setdefault(str(result.get("training_overlap") or "not checked"), []).append(_title(result))
    if overlaps := [f"{overlap} ({'; '.join(titles)})" for overlap, titles in by_overlap.items()]:
        notes.append(f"Training volumes among the scored ones: {'. '.join(overlaps)}.")
    return notes


def _title(result: dict[str, Any]) -> str:
    return str(result.get("title") or result["name"])


def _header(*first: str) -> str:
    """Two rows of heads: the regions, and below them the metrics; `first` heads the columns before them."""
    regions = "".join(f'<th class="edge" colspan="{len(METRICS)}">{escape(name)}</th>' for name in REGIONS.values())
    metrics = "".join(f"<th{_edge(i)}>{escape(name)}</th>" for _ in REGIONS for i, name in enumerate(METRICS.values()))
    names = "".join(f"<th>{name}</th>" for name in first)
    return f"<thead><tr>{'<th></th>' * len(first)}{regions}</tr><tr>{names}{metrics}</tr></thead>"


def _edge(i: int) -> str:
    """A line on the left of a region's first column."""
    return ' class="edge"' if i % len(METRICS) == 0 else ""


def _table(cohort: str, split: str, rows: list[Row], subjects: list[str]) -> str:
    has_subjects = 0 < len(subjects) <= MAX_IN_CELL
    count = counted(len(subjects), f"{split} subject") if subjects else f"{split} subjects"
    return (
        f'<div class="scroll"><table><caption>Cohort <b>{escape(cohort)}</b>: mean (SD) over {escape(count)}'
        f", below it the median{' and each subject' if has_subjects else ''}. Dice: overlap with the label, 1 is "
        "perfect. bAVD: balanced average distance between label and prediction, 0 is perfect.</caption>"
        f"{_header('')}<tbody>{''.join(_line(row, has_subjects) for row in rows)}</tbody></table></div>"
        '<p class="note">Best global threshold: one intensity for all volumes, fitted on the validation subjects; the '
        "baseline without learning. Labels shuffled: synthetic images with other images' labels; the baseline for "
        "wrong labels. The paper's numbers are of its own cohort (PEGASUS) and show what to expect at full size; it "
        "gives no millimetres.</p>"
    )


def _line(row: Row, has_subjects: bool) -> str:
    if row.name == PAPER:
        return _paper_line(row)
    # One for both regions or one each; intensities lie above 1, probabilities below.
    thresholds = list(dict.fromkeys(f"{t:.1f}" if t > 1 else f"{t:g}" for t in row.thresholds.values()))
    threshold = f"<small>threshold {' and '.join(thresholds)}</small>" if thresholds else ""
    cells = "".join(
        f"<td{_edge(i)}>{_cell(row.cell(region, metric), has_subjects)}</td>"
        for region in REGIONS
        for i, metric in enumerate(METRICS)
    )
    return f"<tr><th>{escape(row.title)}{threshold}</th>{cells}</tr>"


def _cell(cell: Cell | None, has_subjects: bool) -> str:
    if cell is None:
        return f'<span class="notrun">{NOT_RUN}</span>'
    values = cell.values.items() if has_subjects else ()
    lines = "".join(f"<small>{escape(subject)} {tables.format_value(value)}</small>" for subject, value in values)
    median = "" if cell.median is None else f"<small>median {cell.median:.3f}</small>"
    return f"{tables.format_cell(cell)}{median}{lines}"


def _paper_line(row: Row) -> str:
    labels = "".join(f"<small>{'on real' if s == 'real' else f'on synthetic by {s}'}</small>" for s in PAPER_SOURCES)
    cells = []
    for region in REGIONS:
        for i, metric in enumerate(METRICS):
            by_source = row.cells.get((region, metric), {})
            texts = [tables.format_cell(by_source[s]) if s in by_source else "–" for s in PAPER_SOURCES]
            cells.append(f"<td{_edge(i)}>&nbsp;{''.join(f'<small>{text}</small>' for text in texts)}</td>")
    return f'<tr class="paper"><th>{escape(row.title)}{labels}</th>{"".join(cells)}</tr>'


def _long_table(rows: list[Row]) -> str:
    """Every subject's values, for cohorts with more than MAX_IN_CELL subjects."""
    lines = []
    for row in rows:
        cells = [row.cell(region, metric) for region in REGIONS for metric in METRICS]
        for i, subject in enumerate(row.subjects):
            texts = [tables.format_value(c.values[subject]) if c and subject in c.values else "–" for c in cells]
            values = "".join(f"<td{_edge(j)}>{text}</td>" for j, text in enumerate(texts))
            title = escape(row.title) if i == 0 else ""
            lines.append(f"<tr><th>{title}</th><td>{escape(subject)}</td>{values}</tr>")
    return (
        f'<div class="scroll"><table><caption>The same, by subject.</caption>{_header("", "subject")}'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _aims(aims: list[Aim]) -> str:
    lines = []
    for aim in aims:
        verdict_class = aim.verdict if aim.verdict in ("pass", "fail") else "idle"
        measured = "–" if aim.measured is None else f"{aim.measured:.3f}"
        lines.append(
            f'<tr><td><span class="verdict {verdict_class}">{aim.verdict}</span></td><td>{escape(aim.text)}</td>'
            f'<td class="number">{measured}</td><td class="number">at least {aim.target:.2f}</td></tr>'
        )
    return (
        "<h3>Aims</h3><p>Set before the run, judged on mean Dice.</p>"
        '<div class="scroll"><table class="plain"><thead><tr><th></th><th>aim</th><th class="number">measured</th>'
        f'<th class="number">target</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _dots(rows: list[Row]) -> str:
    plots = []
    for region, name in REGIONS.items():
        lines = []
        for row in rows:
            if row.name == PAPER:
                continue
            cell = row.cell(region, "dice")
            values = [value for value in cell.values.values() if value is not None] if cell else []
            lines.append(charts.Dots(row.title, values, cell.mean if cell else None))
        plot = charts.dot_plot(lines, x_label="Dice", title=f"Dice of every test subject, {name.lower()}")
        plots.append((name, plot))
    return figure(
        "Dice of every subject",
        panels(plots),
        "Subjects (dots) and their mean (bar).",
        how_to_read="training on synthetic pairs helps if its dots lie right of the threshold's and of the shuffled "
        "labels'; the gap to the dots of real is what it costs.",
    )
