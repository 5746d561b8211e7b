"""The segmentation section: the table, a dot plot of every test subject."""

from collections.abc import Iterable, Sequence
from typing import Any

from vesselgan.core.console import counted
from vesselgan.report import tables
from vesselgan.report.blocks import (
    MIN_FOR_SPREAD,
    Block,
    Figure,
    Panel,
    Section,
    Table,
    Text,
    csv_text,
    file_name,
    markdown,
    not_run,
    not_run_rows,
)
from vesselgan.report.tables import Scores
from vesselgan.viz import plots

MAX_IN_CELL = 4  # subjects whose values fit below the mean
LEGEND = (
    "Dice: overlap with the label, 1 is perfect. bAVD: balanced average Hausdorff distance between label and "
    "prediction, 0 is perfect."
)
NOTE = (
    "Best global threshold: one intensity for all volumes, fitted on the validation subjects; the baseline without "
    "learning. Labels shuffled: every synthetic image has another one's label; the baseline for wrong labels. The "
    "paper's numbers are of its own cohort (PEGASUS) and show what to expect at full size; it gives no millimetres."
)


def section(
    cohort: str,
    split: str,
    same: list[dict[str, Any]],
    others: list[dict[str, Any]],
    notes: Sequence[str] = (),
    *,
    is_only: bool,
) -> Section:
    """One cohort's results: `same` in the table, `others` of other subjects; `is_only`: there is no other cohort.

    notes: further ones on the table.
    """
    scores = tables.segmentation_scores(same)
    subjects = scores.subjects
    blocks: list[Block] = [not_run("no U-Net and no threshold was scored.")]
    if subjects:
        has_subjects = len(subjects) <= MAX_IN_CELL
        below = ["the median"] * (len(subjects) >= MIN_FOR_SPREAD) + ["each subject"] * has_subjects
        sd = " (SD)" if len(subjects) >= MIN_FOR_SPREAD else ""
        caption = (
            f"mean{sd} over {counted(len(subjects), f'{split} subject')}, below it {' and '.join(below)}. {LEGEND}"
        )
        blocks = [
            Table(scores.table(has_subjects=has_subjects), f"Cohort {cohort}:", caption, paper_rows=1),
            *not_run_rows(scores.missing),
            *(Text(note, style="note") for note in (*notes, NOTE, *notes_of(same, others))),
        ]
        if not has_subjects:
            blocks.append(Table(scores.by_subject(), caption="The same by subject:"))
        blocks += _dots(scores)
    stem = "segmentation" if is_only else "-".join(["segmentation", file_name(cohort), file_name(split)])
    title = "Segmentation of held-out volumes" + ("" if is_only else f", {cohort}")
    return Section(
        title, blocks, {} if not subjects else {f"{stem}.md": markdown(blocks), f"{stem}.csv": csv_text(scores.frame)}
    )


def notes_of(same: Iterable[dict[str, Any]], others: Iterable[dict[str, Any]]) -> list[str]:
    """Notes on the results that were left out, and on training volumes among the scored ones."""
    notes = []
    if titles := [_title(result) for result in others]:
        notes.append(f"Left out, as they were scored on other subjects: {'; '.join(titles)}.")
    by_overlap: dict[str, list[str]] = {}
    for result in same:
        if "segmented_with" in result:
            by_overlap.setdefault(str(result.get("training_overlap") or "not checked"), []).append(_title(result))
    if overlaps := [f"{overlap} ({'; '.join(titles)})" for overlap, titles in by_overlap.items()]:
        notes.append(f"Training volumes among the scored ones: {'. '.join(overlaps)}.")
    return notes


def _title(result: dict[str, Any]) -> str:
    return str(result.get("title") or result["name"])


def _dots(scores: Scores) -> list[Figure]:
    """Dice of the intracranial vessels; that of all vessels stands at the head of the page."""
    rows = []
    for row, title in scores.titles.items():
        values = scores.values(row, "intracranial", "dice").dropna()
        rows += [(title.split("\n")[0], values.tolist(), values.mean())] if len(values) else []
    if not rows:
        return []
    title = "Dice of every test subject, intracranial vessels"
    return [
        Figure(
            "Dice inside the brain mask",
            [Panel([plots.dots(rows, x_label="Dice", title=title)])],
            "Subjects (dots) and their mean (bar).",
        )
    ]
