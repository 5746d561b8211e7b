"""The segmentation section: the table, a dot plot of every test subject."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from vesselgan.core.console import counted
from vesselgan.report import tables
from vesselgan.report.blocks import (
    IDENTICAL,
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
from vesselgan.report.commands import DEFAULT, Commands
from vesselgan.report.tables import Scores
from vesselgan.viz import plots

SOURCES = {"real": "real patches", "synthetic": "synthetic patches", "both": "real patches and synthetic ones"}
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
    commands: Commands = DEFAULT,
) -> Section:
    """One cohort's results: `same` in the table, `others` of other subjects; `is_only`: only it, of its test split.

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
            *_missing(scores, commands.threshold(cohort)),
            *(Text(note, style="note") for note in (*notes, NOTE, *learned_notes(same), *notes_of(same, others))),
        ]
        if not has_subjects:
            blocks.append(Table(scores.by_subject(), caption="The same by subject:"))
        blocks += _dots(scores, split)
    stem = "segmentation" if is_only else "-".join(["segmentation", file_name(cohort), file_name(split)])
    title = "Segmentation of held-out volumes" + ("" if is_only else f", {cohort}" + f", {split}" * (split != "test"))
    return Section(
        title, blocks, {} if not subjects else {f"{stem}.md": markdown(blocks), f"{stem}.csv": csv_text(scores.frame)}
    )


def _missing(scores: Scores, command: str) -> list[Text]:
    """The rows that were not run; the best threshold with the command that scores it."""
    threshold = tables.METHODS["threshold"]
    lines = not_run_rows(title for title in scores.missing if title != threshold)
    return [*([not_run(f"{threshold} (`{command}`).")] if threshold in scores.missing else []), *lines]


def learned_notes(results: Iterable[dict[str, Any]]) -> list[str]:
    """What each U-Net learned from: source, label threshold, steps. None if no result says it."""
    texts = []
    for result in results:
        settings = result.get("segmented_with")
        if not isinstance(settings, dict) or settings.get("source") not in SOURCES:
            continue
        gan, step = (result.get("gan") or {}).get("run"), re.search(r"\d+$", str(settings.get("checkpoint")))
        parts = [SOURCES[settings["source"]] + (f" of {gan}" if gan else "")]
        parts += ["labels shuffled"] * bool(settings.get("shuffle_labels"))
        if settings["source"] != "real":
            threshold = settings.get("label_threshold")
            parts.append("stored labels" if threshold is None else f"label threshold {threshold:g}")
        parts += [f"weights of step {int(step[0]):,}"] if step else []
        texts.append(f"{_title(result)}: {', '.join(parts)} ({settings.get('run')})")
    return [f"What the U-Nets learned from. {'. '.join(texts)}."] if texts else []


def notes_of(same: Iterable[dict[str, Any]], others: Iterable[dict[str, Any]]) -> list[str]:
    """Notes on the results that were left out, and on training volumes among the scored ones."""
    notes = []
    if titles := [_title(result) for result in others]:
        notes.append(f"Left out, as they were scored on other subjects or labels: {'; '.join(titles)}.")
    by_overlap: dict[str, list[str]] = {}
    for result in same:
        if "segmented_with" in result:
            by_overlap.setdefault(str(result.get("training_overlap") or "not checked"), []).append(_title(result))
    if overlaps := [f"{overlap} ({'; '.join(titles)})" for overlap, titles in by_overlap.items()]:
        notes.append(f"Training volumes among the scored ones: {'. '.join(overlaps)}. {IDENTICAL}")
    return notes


def _title(result: dict[str, Any]) -> str:
    return str(result.get("title") or result["name"])


def _dots(scores: Scores, split: str) -> list[Figure]:
    """Dice of the intracranial vessels; that of all vessels stands at the head of the page."""
    rows = []
    for row, title in scores.titles.items():
        values = scores.values(row, "intracranial", "dice").dropna()
        rows += [(title.split("\n")[0], values.tolist(), values.mean())] if len(values) else []
    if not rows:
        return []
    title = f"Dice of every {split} subject, intracranial vessels"
    return [
        Figure(
            "Dice inside the brain mask",
            [Panel([plots.dots(rows, x_label="Dice", title=title)])],
            "Subjects (dots) and their mean (bar).",
        )
    ]
