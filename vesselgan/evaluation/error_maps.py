"""Error maps of a segmentation: per voxel true positive, false positive or false negative (the paper's figure 7)."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vesselgan.core.atomic_io import PARTIAL, write_bytes
from vesselgan.core.errors import UsageError
from vesselgan.core.names import path_in
from vesselgan.formats.volumes import write_like
from vesselgan.metrics.masks import as_masks
from vesselgan.viz import pictures, rendering

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = 1, 2, 3
COLOURS: tuple[pictures.Colour, ...] = ((226, 62, 52), (62, 190, 84), (248, 214, 66))
"""Of the values 1, 2 and 3, as in the paper: red, green, yellow."""
SIDE = 320
"""Pixels of a projection's longer side."""


def error_map(truth_XYZ: np.ndarray, predicted_XYZ: np.ndarray) -> np.ndarray:
    """uint8: TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE or 0."""
    truth, predicted = as_masks(truth_XYZ, predicted_XYZ)
    errors = np.zeros(truth.shape, np.uint8)
    errors[truth & predicted] = TRUE_POSITIVE
    errors[predicted & ~truth] = FALSE_POSITIVE
    errors[truth & ~predicted] = FALSE_NEGATIVE
    return errors


def render(errors_XYZ: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Projections along the three axes and a 3D rendering, in COLOURS; HxWx3 uint8."""
    panels = [_project(errors_XYZ, spacing_mm, axis) for axis in (2, 1, 0)]
    return pictures.sheet([[*panels, rendering.render_vessels(errors_XYZ, spacing_mm, size=SIDE, colours=COLOURS)]])


def write(folder: Path, name: str, errors_XYZ: np.ndarray, like: Path, spacing_mm: tuple[float, float, float]) -> None:
    """Writes FOLDER/<name>.png and then, on the grid of the file `like`, FOLDER/<name>.nii.gz."""
    write_bytes(path_in(folder, name, ".png"), pictures.encode_png(render(errors_XYZ, spacing_mm)))
    write_like(path_in(folder, name, ".nii.gz"), errors_XYZ, like)


def check_folder(folder: Path, inputs: Iterable[Path]) -> None:
    """Raises UsageError unless `folder` is new or holds error maps alone; inputs: files that it must not hold."""
    if folder.resolve() in {path.resolve().parent for path in inputs}:
        raise UsageError(f"error_maps={folder}: holds the volumes that are compared; name another folder")
    try:
        names = {path.name.removesuffix(PARTIAL) for path in folder.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UsageError(f"error_maps={folder}: is a file; name a folder") from None
    foreign = [n for n in names if not n.endswith(".png") and n.removesuffix(".nii.gz") + ".png" not in names]
    if foreign:
        raise UsageError(f"error_maps={folder}: holds {min(foreign)}, which is no error map; name another folder")


def _project(errors_XYZ: np.ndarray, spacing_mm: tuple[float, float, float], axis: int) -> np.ndarray:
    """Colours each pixel by the most frequent value along its ray; in a tie an error wins over a true positive."""
    kinds = (FALSE_POSITIVE, FALSE_NEGATIVE, TRUE_POSITIVE)
    counts_KHW = np.stack([np.rot90((errors_XYZ == kind).sum(axis=axis)) for kind in kinds])
    winner_HW = np.where(counts_KHW.any(axis=0), counts_KHW.argmax(axis=0), len(kinds))
    palette = np.array([*(COLOURS[kind - 1] for kind in kinds), (0, 0, 0)], np.uint8)
    projection_HW3 = palette[winner_HW]
    size = pictures.size_to_scale(projection_HW3, spacing_mm, SIDE, axis=axis)
    return pictures.enlarge(projection_HW3, *size, smooth=False)
