"""The brain mask that separates a cohort's intracranial vessels from the others (the paper's figure 3)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vesselgan.config.data_schema import Data
from vesselgan.core.console import counted
from vesselgan.core.errors import DataError
from vesselgan.formats.cohort import COHORT, Cohort, Subject
from vesselgan.formats.intensities import scale_to_255
from vesselgan.report import figures
from vesselgan.report.blocks import Block, Figure, Files, Panel, Picture, Section, Text, file_name, not_run
from vesselgan.viz import pictures

SIDE = 320


def section(folders: Sequence[str]) -> Section:
    """Figure 3 of every cohort."""
    blocks: list[Block] = []
    files: Files = {}
    for folder in dict.fromkeys(folders):
        if not (Path(folder) / COHORT).is_file():
            blocks.append(not_run(f"figure 3 of {Path(folder).name}: the cohort does not exist"))
            continue
        blocks += _figure(Cohort.read(folder), files)
    return Section("Cohorts", blocks, files)


def show_patients(folders: Sequence[str], names: Iterable[str]) -> bool:
    """Whether these folders, or cohorts of these names, hold anything but phantoms.

    A name that no folder stands for counts as patients', and so do shards without a cohort.
    """
    cohorts = [Cohort.read(folder) for folder in folders if (Path(folder) / COHORT).is_file()]
    if any(not cohort.is_phantom for cohort in cohorts):
        return True
    unknown = [f for f in folders if Path(f).is_dir() and not (Path(f) / COHORT).is_file()]
    return bool(unknown or set(names) - {cohort.name for cohort in cohorts})


def name_of(data: Data) -> str:
    """What results call the cohort: the name in its cohort.json; `data.name` without one."""
    folder = Path(data.cohort_dir)
    return Cohort.read(folder).name if (folder / COHORT).is_file() else data.name


def choose_subject(cohort: Cohort) -> str | None:
    """Chooses a subject with label and mask by seed, of the test split if possible; None if there is none."""
    complete = [name for name, subject in sorted(cohort.subjects.items()) if subject.label and subject.mask]
    candidates = [name for name in complete if cohort.subjects[name].split == "test"] or complete
    return candidates[figures.choose(len(candidates), 1, stream=4)[0]] if candidates else None


def _figure(cohort: Cohort, files: Files) -> list[Block]:
    name = choose_subject(cohort)
    splits = [subject.split for subject in cohort.subjects.values()]
    counts = ", ".join(f"{splits.count(split)} {split}" for split in ("train", "validation", "test"))
    heading = Text(f"{counted(len(cohort.subjects), 'subject')} ({counts}).", f"Cohort {cohort.name}:")
    if name is None:
        return [heading, not_run(f"figure 3 of {cohort.name}: no subject has both a vessel label and a brain mask")]
    try:
        panels = panels_of(cohort.subjects[name])
    except (DataError, OSError) as error:
        return [heading, not_run(f"figure 3 of {cohort.name}: {name} cannot be read ({type(error).__name__})")]
    files[f"figure-3-{file_name(cohort.name)}.png"] = pictures.encode_png(pictures.sheet([list(panels.values())]))
    cells = [Picture([(picture, title)], text=title) for title, picture in panels.items()]
    figure = Figure(
        f"Figure 3, the brain mask, {cohort.name}",
        [Panel(cells, grid="four")],
        f"Subject {name}, chosen by seed ({figures.SEED}). Image and mask: mid-axial slice; labels: axial "
        "projections. Intracranial scores count only vessels inside the mask, in the label and in the prediction.",
        grid="one",
    )
    return [heading, figure]


def panels_of(subject: Subject) -> dict[str, np.ndarray]:
    """Returns image, mask, label and masked label as pictures; raises DataError or OSError for an unreadable file."""
    assert subject.mask is not None, "choose_subject takes subjects with a mask"
    image_XYZ = scale_to_255(subject.read_image().data_XYZ, subject.limits)
    label_XYZ = subject.read_label().data_XYZ > 0
    mask_XYZ = subject.read_mask().data_XYZ > 0
    slice_HW = pictures.mid_slice(image_XYZ)
    size = pictures.size_to_scale(slice_HW, subject.spacing_mm, SIDE)
    white = max(float(np.percentile(slice_HW, 99.7)), 1.0)
    plain = pictures.enlarge(pictures.grey(slice_HW, 0.0, white, gamma=figures.GAMMA), *size)
    mask_HW = pictures.enlarge_mask(pictures.mid_slice(mask_XYZ), *size)
    masked = pictures.overlay(plain, mask_HW, colour=pictures.MASK, opacity=0.35)

    def project(vessels_XYZ: np.ndarray) -> np.ndarray:
        black = np.zeros((*size, 3), np.uint8)
        brain = pictures.overlay(black, pictures.enlarge_mask(pictures.mip(mask_XYZ), *size), colour=(46, 56, 70))
        return pictures.overlay(brain, pictures.enlarge_mask(pictures.mip(vessels_XYZ), *size), opacity=1.0)

    return {
        "image": plain,
        "brain mask": masked,
        "vessel label": project(label_XYZ),
        "label inside the mask": project(label_XYZ & mask_XYZ),
    }
