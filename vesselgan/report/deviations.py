"""How a run differs from the paper: settings with other values, from the run's configuration, and the points that the
paper leaves open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vesselgan.config import compose
from vesselgan.config.checks import unread
from vesselgan.report import paper
from vesselgan.report.blocks import Block, Files, Section, Table, Text, csv_text, numbers_csv, text_frame
from vesselgan.report.runs import Run, configured

GROUPS = ("variant", "train", "data")
PAPER_VARIANTS = paper.VARIANTS | {"dpgan": "DPGAN"}
NOT_SCIENCE = ("data.name", "data.root", "data.cohort_dir", "data.layout")
COLUMNS = ("point", "the paper's text", "the authors' code", "vesselgan")


@dataclass(frozen=True)
class OpenPoint:
    """A point that the paper leaves open, under COLUMNS."""

    name: str
    text: str
    code: str
    ours: str
    setting: str | None = None
    """The setting that decides it; its value in the runs is printed behind `ours`."""


POINTS = (
    OpenPoint("generator depth", "three blocks and a last upsampling with its convolution: four upsamplings",
              "three upsamplings, then a convolution without one",
              "as the code: only that gives Table 2's 145 and 308 million parameters"),
    OpenPoint("widths", "filters doubled for c-SN-MP",
              "512 to 64 in the generator, 64 to 512 in the critic; twice that for c-SN-MP, half for DPGAN",
              "the same", "variant.width"),
    OpenPoint("gradient penalty", "WGAN-GP's, equation 1", "one norm and one epsilon for the whole batch",
              "one per sample (Gulrajani 2017); `batch` is the authors' form", "variant.penalty_reduction"),
    OpenPoint("critic updates", "one per generator update, with two learning rates; 5 for DPGAN",
              "one optimizer step after the inner loop: only the last gradient counts, and all see one batch",
              "every update is a step on a fresh batch", "variant.n_critic"),
    OpenPoint("label channel", "a second channel, tanh at the end, threshold 0.3 (SN 0.2)",
              "real labels 0 and 1, images -1 to 1",
              "the same; a study chooses the threshold on validation patches", "data.label_threshold"),
    OpenPoint("image scaling", "-1 to 1 for the GAN, back to 0 to 255 for the U-Net",
              "minimum to maximum of each patch, both ways",
              "limits of the whole volume, stored with the patch; `patch` is the authors' form", "data.scaling"),
    OpenPoint("initial weights", "not stated", "normal, SD 0.05; without effect on the critic with spectral norm",
              "the same, with effect on every variant"),
    OpenPoint("batch norm when sampling", "not stated", "training mode: a sample depends on its batch",
              "evaluation mode: a sample depends on its latent alone"),
    OpenPoint("bAVD", "equation 4: both directed sums over the size of the label", "not in the repository",
              "equation 4, in voxels and in mm"),
    OpenPoint("1000Plus", "65 patients; section 3 quotes other values than Table 3", "20 patients",
              "Table 3 is compared with; the text's values are in a note"),
    OpenPoint("DPGAN's epsilon", "1e6, 1e3, 1e2 for noise 0.1, 0.3, 0.5",
              "five uses of one batch are accounted as independent draws: about ten times too small",
              "one step per fresh Poisson batch, accounted as it ran; every epsilon names its unit, patch or patient"),
)  # fmt: skip


def changed_settings(run: Run) -> list[tuple[str, Any, Any]] | None:
    """Returns (setting, its value in configs/ with the run's variant, the run's) where they differ.

    For the paper's variants those are the paper's values; of others, what they do not read is left out. None for a
    variant that configs/ has not.
    """
    if (config := configured(run.variant)) is None:
        return None
    changed = []
    for key, value in compose.flat(config).items():
        is_science = key.split(".")[0] in GROUPS and not compose.is_free_to_change(key)
        if not is_science or any(key.startswith(name) for name in NOT_SCIENCE) or not _has(run, key):
            continue
        if not _is_papers(run) and unread(config, key) is not None:
            continue  # a flow has no critic to differ in
        if (run_value := run.setting(key)) != value:
            changed.append((key, value, run_value))
    return changed


def _is_papers(run: Run) -> bool:
    return run.model in PAPER_VARIANTS


def _has(run: Run, key: str) -> bool:
    group, _, name = key.rpartition(".")
    holder = run.setting(group)
    return isinstance(holder, dict) and name in holder


def section(runs: Sequence[Run]) -> Section:
    blocks: list[Block] = []
    csv_rows = []
    for run in runs:
        changed = changed_settings(run)
        rows = [[key, _default(key, value), _format(run_value)] for key, value, run_value in changed or []]
        csv_rows += [[run.title, *row] for row in rows]
        cohort = str(run.setting("data.name") or "unknown")
        where = f"trained on cohort {cohort}{', not on PEGASUS' * (cohort != 'pegasus')}{_patch_shape(run)}."
        is_papers = changed is not None and _is_papers(run)
        where += "" if is_papers else " The paper has no such variant."
        if rows:
            columns = ("setting", "paper" if is_papers else "default", "this run")
            caption = f"{where} Settings with other values:"
            blocks.append(Table(text_frame(rows, columns), f"{run.title}:", caption, style="plain"))
        else:
            same = " Every setting has the paper's value." if is_papers else ""
            blocks.append(Text(f"{where}{same}", f"{run.title}:"))
    points = text_frame([[p.name, p.text, p.code, _with_setting(p, runs)] for p in POINTS], COLUMNS)
    blocks.append(Table(points, "What the paper leaves open,", "for all runs.", style="plain prose"))
    files: Files = {
        "deviations.csv": numbers_csv(csv_rows, ("run", "setting", "default", "this run")),
        "open-points.csv": csv_text(points),
    }
    return Section("What differs from the paper", blocks, files)


def _default(key: str, value: Any) -> str:
    """What configs/ has; where that is no number of steps, what it comes to with the paper's patches."""
    if key == "train.max_steps" and value is None:
        return f"{paper.NUM_STEPS:,} ({paper.NUM_EPOCHS} epochs)"
    return _format(value)


def _format(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _patch_shape(run: Run) -> str:
    shape = ((run.architecture or {}).get("generator") or {}).get("output")
    return f", in patches of {' × '.join(map(str, shape[1:]))}" if shape else ""


def _with_setting(point: OpenPoint, runs: Sequence[Run]) -> str:
    """What is done here, with the setting's value in the runs."""
    if point.setting is None:
        return point.ours
    values = {run.title: run.setting(point.setting) for run in runs}
    distinct = list(dict.fromkeys(str(value) for value in values.values() if value is not None))
    if not distinct:
        return point.ours
    if len(distinct) == 1:
        return f"{point.ours} ({point.setting}={distinct[0]})"
    by_run = ", ".join(f"{title}: {value}" for title, value in values.items())
    return f"{point.ours} ({point.setting}: {by_run})"
