"""The segmentation section: the table, the aims, a dot plot of every test subject."""

from collections.abc import Iterable
from typing import Any

from vesselgan.report import tables
from vesselgan.report.blocks import (
    Block,
    Figure,
    Heading,
    Panel,
    Section,
    Table,
    Text,
    counted,
    csv_text,
    file_name,
    markdown,
    text_frame,
)
from vesselgan.report.tables import REGIONS, Scores
from vesselgan.viz import plots

MAX_IN_CELL = 4  # subjects whose values fit below the mean
LEGEND = (
    "Dice: overlap with the label, 1 is perfect. bAVD: balanced average distance between label and prediction, 0 is "
    "perfect."
)
NOTE = (
    "Best global threshold: one intensity for all volumes, fitted on the validation subjects; the baseline without "
    "learning. Labels shuffled: synthetic images with other images' labels; the baseline for wrong labels. The paper's "
    "numbers are of its own cohort (PEGASUS) and show what to expect at full size; it gives no millimetres."
)


def section(
    cohort: str, split: str, same: list[dict[str, Any]], others: list[dict[str, Any]], *, is_only: bool
) -> Section:
    """One cohort's results: `same` in the table, `others` of other subjects; `is_only`: there is no other cohort."""
    scores = tables.segmentation_scores(same)
    subjects = scores.subjects
    has_subjects = 0 < len(subjects) <= MAX_IN_CELL
    count = counted(len(subjects), f"{split} subject") if subjects else f"{split} subjects"
    below = f"below it the median{' and each subject' if has_subjects else ''}"
    caption = f"mean (SD) over {count}, {below}. {LEGEND}"
    blocks: list[Block] = [
        Table(scores.table(has_subjects=has_subjects), f"Cohort {cohort}:", caption, paper_rows=1),
        Text(NOTE, style="note"),
        *(Text(note, style="note") for note in notes_of(same, others)),
    ]
    if len(subjects) > MAX_IN_CELL:
        blocks.append(Table(scores.by_subject(), caption="The same, by subject."))
    blocks += [Heading("Aims"), _aims(tables.aims(scores)), _dots(scores)]
    stem = "segmentation" if is_only else "-".join(["segmentation", file_name(cohort), file_name(split)])
    title = "Segmentation of held-out volumes" + ("" if is_only else f", {cohort}")
    return Section(title, blocks, {f"{stem}.md": markdown(blocks), f"{stem}.csv": csv_text(scores.frame)})


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


def _aims(aims: list[tables.Aim]) -> Table:
    rows = [[aim.text, tables.format_measured(aim), f"at least {aim.target:.2f}", aim.verdict] for aim in aims]
    frame = text_frame(rows, ("aim", "measured", "target", ""))
    return Table(frame, caption="Set before the run, judged on mean Dice.", style="plain")


def _dots(scores: Scores) -> Figure:
    panels = []
    for region, name in REGIONS.items():
        rows = []
        for row, title in scores.titles.items():
            values = scores.values(row, region, "dice").dropna()
            rows.append((title.split("\n")[0], values.tolist(), values.mean() if len(values) else None))
        title = f"Dice of every test subject, {name.lower()}"
        panels.append(Panel([plots.dots(rows, x_label="Dice", title=title)]))
    return Figure(
        "Dice of every subject",
        panels,
        "Subjects (dots) and their mean (bar).",
        how_to_read="training on synthetic pairs helps if its dots lie right of the threshold's and of the shuffled "
        "labels'; the gap to the dots of real is what it costs.",
    )
