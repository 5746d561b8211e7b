"""Synthetic whole heads beside a real one: projections, the vessel tree in 3D, and how their statistics compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vesselgan.core.errors import reading
from vesselgan.formats.cohort import COHORT, Cohort
from vesselgan.formats.intensities import scale_to_255
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.synthetic_volumes import COMPARISON, SyntheticVolumes
from vesselgan.formats.volumes import read_image, read_label
from vesselgan.report import figures
from vesselgan.report.blocks import Block, Figure, Files, Panel, Picture, Section, Table, file_name, text_frame
from vesselgan.report.figures import Sample
from vesselgan.report.runs import Run
from vesselgan.viz import pictures

AXES = {2: "axial", 1: "coronal", 0: "sagittal"}


@dataclass(frozen=True)
class _Head:
    title: str
    sample: Sample
    spacing_mm: tuple[float, float, float]


def section(runs: Sequence[Run], cohort_dir: str | Path) -> Section | None:
    """The first head of every run that made some, beside the first training subject; None without such a run.

    Raises DataError for a volume or a comparison that cannot be read.
    """
    folders = {run.title: SyntheticVolumes(RunDir(run.folder).synthetic_volumes) for run in runs}
    made = {title: volumes for title, volumes in folders.items() if volumes.subjects}
    if not made:
        return None
    heads = [*_real(Path(cohort_dir)), *(_synthetic(title, volumes) for title, volumes in made.items())]
    white = figures.window([head.sample for head in heads[:1]])
    drawn = {head.title: _pictures(head, white) for head in heads}
    figure = Figure(
        "Whole heads",
        [Panel([Picture(drawn[head.title], text=head.sample.vessels)], head.title) for head in heads],
        "Maximum intensity projections along three axes, and the label's surface, seen from behind and above; each "
        "connected component has its own hue. The first head of each set.",
        how_to_read="a synthetic head should have skull, scalp and brain where the real one has them, no edges of the "
        "windows it was put together from, and one connected tree.",
    )
    files: Files = {}
    for title, shown in drawn.items():
        files[f"head-{file_name(title)}.png"] = pictures.encode_png(pictures.sheet([[image for image, _ in shown]]))
    tables = [_comparison(title, volumes.folder / COMPARISON) for title, volumes in made.items()]
    return Section("Whole heads", [figure, *(block for blocks in tables for block in blocks)], files)


def _real(cohort_dir: Path) -> list[_Head]:
    if not (cohort_dir / COHORT).is_file():
        return []
    training = Cohort.read(cohort_dir).of_split("train")
    if not training:
        return []
    name, subject = next(iter(training.items()))
    volume = subject.read_image()
    image_XYZ = scale_to_255(volume.data_XYZ, subject.limits)
    return [_Head("Real", Sample(0, name, "real", image_XYZ, subject.read_label().data_XYZ), volume.spacing_mm)]


def _synthetic(title: str, volumes: SyntheticVolumes) -> _Head:
    first = volumes.subjects[0]
    volume, label = read_image(volumes.path("images", first)), read_label(volumes.path("labels", first))
    return _Head(title, Sample(0, title, "synthetic", volume.data_XYZ, label.data_XYZ), volume.spacing_mm)


def _pictures(head: _Head, white: float) -> list[tuple[np.ndarray, str]]:
    """Three projections, to scale, and the tree."""
    side_mm = max(n * mm for n, mm in zip(head.sample.image_XYZ.shape, head.spacing_mm, strict=True))
    shown = []
    for axis, name in AXES.items():
        picture = pictures.grey(pictures.mip(head.sample.image_XYZ, axis), 0.0, white, gamma=figures.GAMMA)
        size = pictures.size_to_scale(picture, head.spacing_mm, figures.SIDE, axis=axis, side_mm=side_mm)
        shown.append((pictures.enlarge(picture, *size), f"{head.title}, {name} projection"))
    return [*shown, (figures.vessels(head.sample, head.spacing_mm), f"{head.title}, vessels in 3D")]


def _comparison(title: str, path: Path) -> list[Block]:
    """A table of what `generate` measured; none where it measured nothing."""
    if not path.is_file():
        return []
    with reading(path, "remove it and generate again"):
        sets = json.loads(path.read_text())
        names = list(dict.fromkeys(name for ranges in sets.values() for name in ranges))
        rows = [(name, *(_text(ranges.get(name, [])) for ranges in sets.values())) for name in names]
    return [
        Table(
            text_frame(rows, ["", *sets]),
            f"Heads of {title}.",
            "Smallest to largest of up to four volumes; of radii the 5th, 50th and 95th percentile. Seams: gradient "
            "energy across the borders of windows over that beside them.",
        )
    ]


def _text(values: Sequence[float]) -> str:
    return (" to " if len(values) == 2 else ", ").join(f"{value:.4g}" for value in values) or "none"
