"""How the intracranial vessels of a cohort are told from the others (the paper's figure 3)."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.formats.cohort import COHORT, Cohort, Subject, read_cohort
from vesselgan.formats.volumes import read_mask, scale_to_255
from vesselgan.report import figures
from vesselgan.report.markup import Part, counted, figure, file_name, not_run
from vesselgan.viz import pictures

SIDE = 320
MASK: pictures.Colour = (92, 200, 255)


def section(folders: Sequence[str]) -> Part:
    """Figure 3 of every cohort that is there."""
    body: list[str] = []
    files: dict[str, str | bytes] = {}
    for folder in dict.fromkeys(folders):
        if not (Path(folder) / COHORT).is_file():
            body.append(not_run(f"figure 3 of {Path(folder).name}: the cohort is not here"))
            continue
        cohort = read_cohort(folder)
        body.append(_figure(cohort, files))
    return Part("Cohorts", "\n".join(body), files)


def chosen(cohort: Cohort) -> str | None:
    """Who is shown: by seed, of the test subjects with a label and a mask, else of all that have both; None: nobody."""
    whole = [name for name, subject in sorted(cohort.subjects.items()) if subject.label and subject.mask]
    tested = [name for name in whole if cohort.subjects[name].split == "test"]
    some = tested or whole
    return some[figures.choose(len(some), 1, stream=4)[0]] if some else None


def _figure(cohort: Cohort, files: dict[str, str | bytes]) -> str:
    name = chosen(cohort)
    counts = {
        split: sum(s.split == split for s in cohort.subjects.values()) for split in ("train", "validation", "test")
    }
    told = ", ".join(f"{count} {split}" for split, count in counts.items())
    about = f"<p>Cohort <b>{escape(cohort.name)}</b>: {counted(len(cohort.subjects), 'subject')} ({told}).</p>"
    if name is None:
        return about + not_run(f"figure 3 of {cohort.name}: no subject has both a vessel label and a brain mask")
    try:
        shown = panels_of(cohort.subjects[name])
    except (DataError, OSError) as error:
        return about + not_run(f"figure 3 of {cohort.name}: {name} cannot be read ({type(error).__name__})")
    files[f"figure-3-{file_name(cohort.name)}.png"] = pictures.encode_png(pictures.sheet([list(shown.values())]))
    cells = "".join(
        f'<div class="stack">{figures.inline(picture, title)}<div class="text">{escape(title)}</div></div>'
        for title, picture in shown.items()
    )
    return about + figure(
        f"Figure 3, the brain mask, {escape(cohort.name)}",
        f'<div class="panel"><div class="cells four">{cells}</div></div>',
        f"Subject {escape(name)}, chosen by seed ({figures.SEED}). Image and mask: the axial slice in the middle; "
        "labels: projections along the body's axis. Intracranial scores count vessels inside the mask alone, in the "
        "label and in the prediction.",
    )


def panels_of(subject: Subject) -> dict[str, np.ndarray]:
    """Image, mask, label and masked label as pictures; DataError or OSError where a file cannot be read."""
    image_XYZ = scale_to_255(subject.read_image().data_XYZ, subject.limits)
    label_XYZ = subject.read_label().data_XYZ > 0
    mask_XYZ = read_mask(subject.mask).data_XYZ > 0
    shape = image_XYZ.shape
    width_mm, height_mm = (shape[k] * subject.spacing_mm[k] for k in (0, 1))
    scale = SIDE / max(width_mm, height_mm)
    size = max(1, round(height_mm * scale)), max(1, round(width_mm * scale))
    slice_HW = pictures.mid_slice(image_XYZ)
    white = max(float(np.percentile(slice_HW, 99.7)), 1.0)
    plain = pictures.enlarge(pictures.grey(slice_HW, 0.0, white, gamma=figures.GAMMA), *size)
    mask_HW = pictures.enlarge_mask(pictures.mid_slice(mask_XYZ), *size)
    masked = pictures.overlay(plain, mask_HW, colour=MASK, opacity=0.35)

    def projected(vessels_XYZ: np.ndarray) -> np.ndarray:
        empty = np.zeros((*size, 3), np.uint8)
        inside = pictures.overlay(empty, pictures.enlarge_mask(pictures.mip(mask_XYZ), *size), colour=(46, 56, 70))
        return pictures.overlay(inside, pictures.enlarge_mask(pictures.mip(vessels_XYZ), *size), opacity=1.0)

    return {
        "image": plain,
        "brain mask": masked,
        "vessel label": projected(label_XYZ),
        "label inside the mask": projected(label_XYZ & mask_XYZ),
    }
