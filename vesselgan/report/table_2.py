"""The cost of training beside the paper's Table 2: parameters, memory, hours, and the device."""

from collections.abc import Sequence
from typing import Any

from vesselgan.report import paper
from vesselgan.report.blocks import Table, text_frame
from vesselgan.report.runs import Run

MIB_PER_GIB = 1024
COLUMNS = ("Model", "Device", "Ranks", "Patch", "Batch", "Steps", "Parameters (M)", "Memory (MB)", "Time (h)")
UNKNOWN = "not recorded"
NOTE = (
    "Memory is per rank, in MB of 2^20 bytes as nvidia-smi counts: on a GPU the allocator's, on a CPU the whole "
    "process's. Times are comparable only at equal patches, batches and steps. The paper's steps: "
    f"{paper.NUM_EPOCHS} epochs of {paper.NUM_PATCHES // paper.BATCH_SIZE} whole batches."
)


def rows(runs: Sequence[Run]) -> list[list[str]]:
    """Returns the rows under COLUMNS: the runs, then the paper's rows."""
    ours = [_run_row(run) for run in runs]
    settings = [
        paper.TABLE_2_DEVICE,
        "1",
        " x ".join(map(str, paper.PATCH_SHAPE)),
        str(paper.BATCH_SIZE),
        f"{paper.NUM_STEPS:,}",
    ]
    return ours + [
        [f"{model} (paper)", *settings, f"{parameters}", f"{memory:,}", f"{hours}"]
        for model, (parameters, memory, hours) in paper.TABLE_2.items()
    ]


def _run_row(run: Run) -> list[str]:
    if run.finished is None:
        return [f"{run.title}\nnot finished", *["-"] * (len(COLUMNS) - 1)]
    record = run.finished
    parameters = record.get("parameters")
    parameters = list(parameters.values()) if isinstance(parameters, dict) else []
    memory_gib = record.get("reserved_gib_per_rank", record.get("peak_gib_per_rank"))
    return [
        run.title,
        str(record.get("device_name") or record.get("device") or UNKNOWN),
        _number(record.get("ranks"), ",.0f"),
        " x ".join(map(str, shape)) if isinstance(shape := record.get("patch_shape"), list) else UNKNOWN,
        _number(record.get("batch_size"), ",.0f"),
        _number(record.get("steps"), ",.0f"),
        _number(sum(parameters) / 1e6, ".3f") if parameters and all(map(_is_number, parameters)) else UNKNOWN,
        _number(memory_gib * MIB_PER_GIB, ",.0f") if isinstance(memory_gib, int | float) else UNKNOWN,
        _number(record.get("hours"), ".2f"),
    ]


def _number(value: Any, spec: str) -> str:
    return format(value, spec) if _is_number(value) else UNKNOWN


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def table(runs: Sequence[Run]) -> Table:
    return Table(text_frame(rows(runs), COLUMNS), "Table 2, the cost of training.", NOTE, paper_rows=len(paper.TABLE_2))
