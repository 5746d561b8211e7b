"""What the runs cost beside the paper's Table 2: parameters, memory, hours, on what."""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from html import escape
from typing import Any

from vesselgan.report import paper
from vesselgan.report.markup import NOT_RUN, cell
from vesselgan.report.runs import Run

MIB_PER_GIB = 1024
HEAD = ("Model", "Device", "Ranks", "Patch", "Batch", "Steps", "Parameters (M)", "Memory (MB)", "Time (h)")
UNKNOWN = "not recorded"
NOTE = (
    "Memory is per rank, in MB of 2^20 bytes as nvidia-smi counts: on a GPU what the allocator holds, on a CPU "
    "the whole process. Times compare only at equal patches, batches and steps."
)


@dataclass(frozen=True)
class Row:
    """One line of the table, as text."""

    model: str
    device: str
    ranks: str
    patch: str
    batch: str
    steps: str
    parameters: str
    memory: str
    hours: str


def rows(runs: Sequence[Run]) -> tuple[list[Row], list[Row]]:
    """(the paper's, ours): a run that is not finished, or was made before a fact was recorded, says so.

    A model of the paper without a run has a row that says so too.
    """
    theirs = []
    for model, (parameters, memory, hours) in paper.TABLE_2.items():
        settings = (paper.TABLE_2_DEVICE, "1", "128 x 128 x 64", "4", "58,700")
        theirs.append(Row(f"{model} (paper)", *settings, f"{parameters}", f"{memory:,}", f"{hours}"))
    present = {paper.VARIANTS.get(run.variant or "") for run in runs}
    absent = [Row(model, *[NOT_RUN] * (len(HEAD) - 1)) for model in paper.TABLE_2 if model not in present]
    return theirs, [*map(_of_run, runs), *absent]


def _of_run(run: Run) -> Row:
    if run.finished is None:
        return Row(run.title, *["not finished"] * (len(HEAD) - 1))
    facts = run.finished
    parameters, memory_gib = facts.get("parameters"), facts.get("reserved_gib_per_rank", facts.get("peak_gib_per_rank"))
    return Row(
        model=run.title,
        device=str(facts.get("device_name") or facts.get("device") or UNKNOWN),
        ranks=_number(facts.get("ranks"), ",.0f"),
        patch=" x ".join(str(side) for side in facts["patch_shape"]) if "patch_shape" in facts else UNKNOWN,
        batch=_number(facts.get("batch_size"), ",.0f"),
        steps=_number(facts.get("steps"), ",.0f"),
        parameters=_number(sum(parameters.values()) / 1e6, ".3f") if isinstance(parameters, dict) else UNKNOWN,
        memory=_number(memory_gib and memory_gib * MIB_PER_GIB, ",.0f"),
        hours=_number(facts.get("hours"), ".2f"),
    )


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else UNKNOWN


def section(runs: Sequence[Run]) -> str:
    """The table as HTML: the runs, the paper's models that were not run, the paper's numbers."""
    theirs, ours = rows(runs)
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    lines = "".join(_line(row, "") for row in ours) + "".join(_line(row, ' class="paper"') for row in theirs)
    return (
        '<div class="scroll"><table><caption><b>Table 2, the cost of training.</b> '
        f"{escape(NOTE)}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _line(row: Row, style: str) -> str:
    first, *others = astuple(row)
    return f"<tr{style}><th>{escape(first)}</th>{''.join(map(cell, others))}</tr>"


def format_markdown(runs: Sequence[Run]) -> str:
    """The table and its note."""
    theirs, ours = rows(runs)
    table = [HEAD, ("---",) * len(HEAD), *(astuple(row) for row in (*ours, *theirs))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table) + f"\n\n{NOTE}\n"


def format_csv(runs: Sequence[Run]) -> str:
    theirs, ours = rows(runs)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([HEAD, *(astuple(row) for row in (*ours, *theirs))])
    return buffer.getvalue()
