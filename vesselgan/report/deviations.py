"""Where a run differs from the paper: settings with other values, read from the run's own configuration, and the points
that the paper leaves open, with what its text says, what its authors' code does and what is done here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vesselgan.config import compose
from vesselgan.core.errors import UsageError
from vesselgan.report.markup import Part, csv_text, table
from vesselgan.report.runs import Run

GROUPS = ("variant", "train", "data")
NOT_SCIENCE = ("data.name", "data.root", "data.cohort_dir", "data.layout")
HEADS = ("point", "the paper's text", "the authors' code", "here")


@dataclass(frozen=True)
class Point:
    """A point that the paper leaves unclear."""

    name: str
    text: str
    code: str
    here: str
    setting: str | None = None
    """The setting that decides it in a run; what the run has is told behind `here`."""


POINTS = (
    Point("generator depth", "three blocks and a last upsampling with its convolution: four upsamplings",
          "three upsamplings, then a convolution without one",
          "the code's: only it gives Table 2's 145 and 308 million parameters"),
    Point("widths", "filters doubled for c-SN-MP", "512 to 64 in the generator, 64 to 512 in the critic; twice that "
          "for c-SN-MP, half for DPGAN", "the same", "variant.width"),
    Point("gradient penalty", "WGAN-GP's, equation 1", "one norm and one epsilon for the whole batch",
          "one per sample (Gulrajani 2017); the value batch is the authors' form", "variant.penalty_reduction"),
    Point("critic updates", "one per generator update, with two learning rates; 5 for DPGAN",
          "the optimizer steps once, behind the inner loop: of several only the last gradient counts, all on one batch",
          "every update is a step on a fresh batch", "variant.n_critic"),
    Point("label channel", "a second channel, tanh at the end, cut at 0.3 (SN 0.2)", "real labels 0 and 1, images -1 "
          "to 1", "the same; a study chooses the cut on validation patches", "data.label_threshold"),
    Point("image scaling", "-1 to 1 for the GAN, back to 0 to 255 for the U-Net", "minimum to maximum of each patch, "
          "both ways", "limits of the whole volume, kept with the patch; the value patch is the authors' form",
          "data.scaling"),
    Point("start of the weights", "not said", "normal, SD 0.05; without effect on the critic with spectral norm",
          "the same start, with effect on every variant"),
    Point("batch norm when sampling", "not said", "left in training mode: a sample depends on its neighbours",
          "evaluation mode: a sample depends on its latent alone"),
    Point("bAVD", "equation 4: both directed sums over the size of the label", "not in the repository",
          "equation 4, in voxels and in mm"),
    Point("1000Plus", "65 patients; section 3 quotes other values than Table 3", "20 patients",
          "Table 3 is what stands beside ours; the text's values are in a note"),
    Point("DPGAN's epsilon", "1e6, 1e3, 1e2 for noise 0.1, 0.3, 0.5", "five uses of one batch accounted as independent "
          "draws: about ten times too small", "one step per fresh Poisson batch, accounted as it ran; the unit, patch "
          "or patient, is named with every number"),
)  # fmt: skip


def changed_settings(run: Run) -> list[tuple[str, Any, Any]] | None:
    """(setting, the paper's value, the run's), where they differ; None where the variant is not one of ours.

    The paper's values are those of configs/, with the run's variant.
    """
    if not re.fullmatch(r"\w+", run.variant or ""):
        return None
    try:
        paper = compose.flat(compose.compose("train_gan", [f"variant={run.variant}"]))
    except UsageError:
        return None
    changed = []
    for key, value in paper.items():
        is_science = key.split(".")[0] in GROUPS and not compose.is_free_to_change(key)
        if not is_science or any(key.startswith(name) for name in NOT_SCIENCE) or not _has(run, key):
            continue
        if (mine := run.setting(key)) != value:
            changed.append((key, value, mine))
    return changed


def _has(run: Run, key: str) -> bool:
    group, _, name = key.rpartition(".")
    holder = run.setting(group)
    return isinstance(holder, dict) and name in holder


def section(runs: Sequence[Run]) -> Part:
    body, lines = [], []
    for run in runs:
        changed = changed_settings(run)
        found = [[key, _shown(value), _shown(mine)] for key, value, mine in changed or []]
        lines += [[run.title, *line] for line in found]
        name = escape(run.title)
        cohort = escape(str(run.setting("data.name") or "unknown"))
        patch = _patch_of(run)
        about = f"trained on cohort <b>{cohort}</b>, not on PEGASUS{patch}"
        if changed is None:
            body.append(f"<p><b>{name}</b>: {about}; a variant of your own, with no row of the paper beside it.</p>")
        elif found:
            heads = ("setting", "paper", "this run")
            body.append(table(f"<b>{name}</b>: {about}. Settings with other values:", heads, found, classes="plain"))
        else:
            body.append(f"<p><b>{name}</b>: {about}; every setting has the paper's value.</p>")
    points = [[p.name, p.text, p.code, _here(p, runs)] for p in POINTS]
    caption = "<b>What the paper leaves open</b>, for all runs."
    body.append(table(caption, HEADS, points, classes="plain prose"))
    files = {
        "deviations.csv": csv_text(("run", "setting", "paper", "this run"), lines),
        "open-points.csv": csv_text(HEADS, points),
    }
    return Part("What differs from the paper", "\n".join(body), dict(files))


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _patch_of(run: Run) -> str:
    shape = ((run.architecture or {}).get("generator") or {}).get("output")
    return f", in patches of {escape(' × '.join(map(str, shape[1:])))}" if shape else ""


def _here(point: Point, runs: Sequence[Run]) -> str:
    """What is done, and the value that the runs have."""
    if point.setting is None or not runs:
        return point.here
    values = {run.title: run.setting(point.setting) for run in runs}
    known = list(dict.fromkeys(str(value) for value in values.values() if value is not None))
    if not known:
        return point.here
    if len(known) == 1:
        return f"{point.here} ({point.setting}={known[0]})"
    told = ", ".join(f"{title}: {value}" for title, value in values.items())
    return f"{point.here} ({point.setting}: {told})"
