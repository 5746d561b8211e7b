"""What a subject looks like, and how suspicious it is: projections, a histogram, a few numbers, reasons in words."""

# X Y Z voxels of the canonical grid, H W rows and columns of a picture

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from vesselgan.viz import pictures

PICTURE_HEIGHT = 180
MASK: pictures.Colour = (92, 200, 255)
AXES = ("from the side", "from the front", "from above")
NUM_BINS = 64
COLOURS = 96  # of a picture's palette: a third of the bytes, no visible loss
FAR_OFF = 4.0  # deviations from the cohort's median, robust, that are worth a word
FEWEST = 5  # subjects below which nobody is compared with the others
SHELL_VOXELS = 2
MIN_CONTRAST = 1.2  # below it the label hardly lies on vessels


@dataclass(frozen=True)
class Preview:
    """One subject for the page."""

    pngs: tuple[bytes, ...]
    """One picture per axis, in the order of AXES."""
    histogram: tuple[float, ...]
    """Shares of the non-zero voxels in NUM_BINS equal bins from the lower to the upper intensity limit."""
    vessel_histogram: tuple[float, ...] | None
    """The same for the vessel voxels."""
    contrast: float | None
    """Mean intensity of the vessel voxels over that of the shell of SHELL_VOXELS around them."""
    brightness: float
    """Median of the non-zero voxels, 0 at the lower limit and 1 at the upper."""


def look(
    image_XYZ: np.ndarray,
    label_XYZ: np.ndarray | None,
    mask_XYZ: np.ndarray | None,
    *,
    spacing_mm: Sequence[float],
    limits: tuple[float, float],
) -> Preview:
    """Project and measure a volume whose label and mask, where there are any, share its grid."""
    voxels = image_XYZ[image_XYZ != 0]
    vessel = None if label_XYZ is None else label_XYZ > 0
    has_vessels = vessel is not None and bool(vessel.any())
    return Preview(
        pngs=tuple(_picture(image_XYZ, label_XYZ, mask_XYZ, axis, spacing_mm, limits) for axis in range(3)),
        histogram=_histogram(voxels, limits),
        vessel_histogram=_histogram(image_XYZ[vessel], limits) if has_vessels else None,
        contrast=_contrast(image_XYZ, vessel) if has_vessels else None,
        brightness=float((np.median(voxels) - limits[0]) / (limits[1] - limits[0])),
    )


def reasons(numbers: Sequence[dict[str, float | None]]) -> list[list[tuple[float, str]]]:
    """Per subject, what sets it apart from the others: (deviations, words). `numbers`: name -> value, by subject."""
    apart: list[list[tuple[float, str]]] = [[] for _ in numbers]
    for name in sorted({key for entry in numbers for key in entry}):
        values = [entry.get(name) for entry in numbers]
        known = [value for value in values if value is not None and math.isfinite(value)]
        if len(known) < FEWEST:
            continue
        middle = statistics.median(known)
        # The floor keeps a cohort of equals (a phantom's) from making a hair's breadth into news.
        spread = max(1.4826 * statistics.median(abs(v - middle) for v in known), 0.02 * abs(middle), 1e-9)
        for found, value in zip(apart, values, strict=True):
            deviations = 0.0 if value is None else abs(value - middle) / spread
            if deviations >= FAR_OFF:
                side = "above" if value > middle else "below"
                found.append((deviations, f"{name} {value:.3g} is far {side} the cohort's {middle:.3g}"))
    return apart


def _picture(
    image_XYZ: np.ndarray,
    label_XYZ: np.ndarray | None,
    mask_XYZ: np.ndarray | None,
    axis: int,
    spacing_mm: Sequence[float],
    limits: tuple[float, float],
) -> bytes:
    """PNG of the maximum-intensity projection with the outlines of label and mask, at the true aspect ratio."""
    projection_HW = pictures.mip(image_XYZ, axis)
    across, upward = (float(spacing_mm[i]) for i in range(3) if i != axis)
    rows, columns = projection_HW.shape
    height = PICTURE_HEIGHT
    width = max(1, round(height * columns * across / (rows * upward)))
    picture = pictures.enlarge(pictures.grey(projection_HW, *limits, gamma=0.8), height, width)
    for volume, colour in ((mask_XYZ, MASK), (label_XYZ, pictures.LABEL)):
        if volume is not None:
            flat_HW = pictures.enlarge_mask(pictures.mip(volume, axis), height, width)
            # One pixel outside of it: a line inside would hide the thin vessels that it is to be held against.
            picture = pictures.outline(picture, ndimage.binary_dilation(flat_HW), colour=colour)
    buffer = io.BytesIO()
    Image.fromarray(picture).quantize(COLOURS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _histogram(voxels: np.ndarray, limits: tuple[float, float]) -> tuple[float, ...]:
    counts, _ = np.histogram(np.clip(voxels, *limits), NUM_BINS, range=limits)
    return tuple(float(count) / max(1, voxels.size) for count in counts)


def _contrast(image_XYZ: np.ndarray, vessel_XYZ: np.ndarray) -> float | None:
    """None where no shell is left or it is dark: nothing to compare with."""
    box = tuple(
        slice(max(0, int(where.min()) - SHELL_VOXELS), int(where.max()) + SHELL_VOXELS + 1)
        for where in (np.flatnonzero(vessel_XYZ.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    )
    near = ndimage.binary_dilation(vessel_XYZ[box], iterations=SHELL_VOXELS) & ~vessel_XYZ[box]
    around = float(image_XYZ[box][near].mean()) if near.any() else 0.0
    return float(image_XYZ[vessel_XYZ].mean()) / around if around > 0 else None
