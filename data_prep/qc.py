"""Previews of subjects and outliers among them: projections, histograms, a few numbers."""

# X Y Z voxels of the canonical grid, H W rows and columns of a 2D image

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vesselgan.viz import pictures

IMAGE_HEIGHT = 180
AXES = ("from the side", "from the front", "from above")
NUM_BINS = 64
NUM_COLOURS = 96  # of a PNG's palette: a third of the bytes, no visible loss
OUTLIER_DEVIATIONS = 4.0  # robust deviations from the cohort's median
MIN_SUBJECTS = 5  # fewer are not compared with each other
SHELL_VOXELS = 2
MIN_CONTRAST = 1.2  # below it the label hardly lies on vessels


@dataclass(frozen=True)
class Preview:
    """Images and numbers of one subject for the page."""

    pngs: tuple[bytes, ...]
    """One projection per axis, in the order of AXES."""
    histogram: tuple[float, ...]
    """Shares of the non-zero voxels in NUM_BINS equal bins from the lower to the upper intensity limit."""
    vessel_histogram: tuple[float, ...] | None
    """The same for the vessel voxels."""
    contrast: float | None
    """Mean intensity of the vessel voxels over that of the shell of SHELL_VOXELS around them."""
    brightness: float
    """Median of the non-zero voxels, 0 at the lower limit and 1 at the upper."""


def make_preview(
    image_XYZ: np.ndarray,
    label_XYZ: np.ndarray | None,
    mask_XYZ: np.ndarray | None,
    *,
    spacing_mm: Sequence[float],
    limits: tuple[float, float],
) -> Preview:
    """Project and measure a volume whose label and mask, where there are any, share its grid."""
    voxels = image_XYZ[image_XYZ != 0]
    vessel_XYZ = None if label_XYZ is None or not label_XYZ.any() else label_XYZ > 0
    return Preview(
        pngs=tuple(_projection_png(image_XYZ, label_XYZ, mask_XYZ, axis, spacing_mm, limits) for axis in range(3)),
        histogram=_histogram(voxels, limits),
        vessel_histogram=None if vessel_XYZ is None else _histogram(image_XYZ[vessel_XYZ], limits),
        contrast=None if vessel_XYZ is None else _contrast(image_XYZ, vessel_XYZ),
        brightness=float((np.median(voxels) - limits[0]) / (limits[1] - limits[0])),
    )


def find_outliers(measures: Sequence[dict[str, float | None]]) -> list[list[tuple[float, str]]]:
    """Per subject, (robust deviations, reason) of each measure far from the cohort's median.

    `measures`: name -> value, by subject.
    """
    outliers: list[list[tuple[float, str]]] = [[] for _ in measures]
    for name in sorted({key for entry in measures for key in entry}):
        values = [entry.get(name) for entry in measures]
        known = [value for value in values if value is not None and math.isfinite(value)]
        if len(known) < MIN_SUBJECTS:
            continue
        median = statistics.median(known)
        # The floor keeps tiny differences within a uniform cohort (a phantom's) from becoming outliers.
        deviation = max(1.4826 * statistics.median(abs(v - median) for v in known), 0.02 * abs(median), 1e-9)
        for reasons, value in zip(outliers, values, strict=True):
            if value is not None and abs(value - median) / deviation >= OUTLIER_DEVIATIONS:
                side = "above" if value > median else "below"
                text = f"{name} {value:.3g} is far {side} the cohort's {median:.3g}"
                reasons.append((abs(value - median) / deviation, text))
    return outliers


def _projection_png(
    image_XYZ: np.ndarray,
    label_XYZ: np.ndarray | None,
    mask_XYZ: np.ndarray | None,
    axis: int,
    spacing_mm: Sequence[float],
    limits: tuple[float, float],
) -> bytes:
    """PNG of the maximum-intensity projection with the outlines of label and mask, at the true aspect ratio."""
    from scipy import ndimage

    projection_HW = pictures.mip(image_XYZ, axis)
    across, upward = (float(spacing_mm[i]) for i in range(3) if i != axis)
    rows, columns = projection_HW.shape
    height = IMAGE_HEIGHT
    width = max(1, round(height * columns * across / (rows * upward)))
    image = pictures.enlarge(pictures.grey(projection_HW, *limits, gamma=0.8), height, width)
    for volume, colour in ((mask_XYZ, pictures.MASK), (label_XYZ, pictures.LABEL)):
        if volume is not None:
            flat_HW = pictures.enlarge_mask(pictures.mip(volume, axis), height, width)
            # One pixel outside: a line inside would hide thin vessels.
            image = pictures.outline(image, ndimage.binary_dilation(flat_HW), colour=colour)
    buffer = io.BytesIO()
    Image.fromarray(image).quantize(NUM_COLOURS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _histogram(voxels: np.ndarray, limits: tuple[float, float]) -> tuple[float, ...]:
    counts, _ = np.histogram(np.clip(voxels, *limits), NUM_BINS, range=limits)
    return tuple(float(count) / max(1, voxels.size) for count in counts)


def _contrast(image_XYZ: np.ndarray, vessel_XYZ: np.ndarray) -> float | None:
    """None where there is no shell, or a dark one."""
    from scipy import ndimage

    box = tuple(
        slice(max(0, int(indices.min()) - SHELL_VOXELS), int(indices.max()) + SHELL_VOXELS + 1)
        for indices in (np.flatnonzero(vessel_XYZ.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    )
    shell = ndimage.binary_dilation(vessel_XYZ[box], iterations=SHELL_VOXELS) & ~vessel_XYZ[box]
    shell_mean = float(image_XYZ[box][shell].mean()) if shell.any() else 0.0
    return float(image_XYZ[vessel_XYZ].mean()) / shell_mean if shell_mean > 0 else None
