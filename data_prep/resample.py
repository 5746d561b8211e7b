"""Volumes on a grid of another spacing over the same field of view."""

# X Y Z voxels of the canonical grid

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage


class Grid(NamedTuple):
    """Where a resampled volume lies."""

    shape: tuple[int, int, int]
    affine: np.ndarray
    step: tuple[float, float, float]
    """New spacing in old voxels, per axis."""


def grid_of(shape: Sequence[int], affine: np.ndarray, spacing_mm: Sequence[float], wanted_mm: Sequence[float]) -> Grid:
    """The grid with `wanted_mm` whose outer faces are the old ones, to within half a new voxel on the far side.

    Voxel centres move: the first lies half a new voxel inside the face, not half an old one.
    """
    step = tuple(float(wanted / old) for wanted, old in zip(wanted_mm, spacing_mm, strict=True))
    new_shape = tuple(max(1, round(extent / s)) for extent, s in zip(shape, step, strict=True))
    to_old = np.diag([*step, 1.0])
    to_old[:3, 3] = [(s - 1) / 2 for s in step]
    return Grid(new_shape, affine @ to_old, step)


def image_onto(grid: Grid, image_XYZ: np.ndarray) -> np.ndarray:
    """Cubic spline, within the image's own range; smoothed first on axes that get coarser (else it would alias)."""
    resampled_XYZ = _onto(grid, _smoothed(image_XYZ.astype(np.float32, copy=False), grid), order=3)
    return np.clip(resampled_XYZ, image_XYZ.min(), image_XYZ.max(), out=resampled_XYZ)


def label_onto(grid: Grid, label_XYZ: np.ndarray) -> np.ndarray:
    """uint8 {0, 1}: where the label, interpolated linearly, is at least one half."""
    return (_onto(grid, _smoothed(label_XYZ.astype(np.float32), grid), order=1) >= 0.5).astype(np.uint8)


def _onto(grid: Grid, volume_XYZ: np.ndarray, *, order: int) -> np.ndarray:
    offset = [(step - 1) / 2 for step in grid.step]
    return ndimage.affine_transform(
        volume_XYZ, np.array(grid.step), offset, output_shape=grid.shape, order=order, mode="nearest"
    )


def _smoothed(volume_XYZ: np.ndarray, grid: Grid) -> np.ndarray:
    """A Gaussian that widens the old voxel's point spread to the new one's (widths add in quadrature)."""
    sigmas = [0.5 * np.sqrt(max(step**2 - 1, 0.0)) for step in grid.step]
    return ndimage.gaussian_filter(volume_XYZ, sigmas, mode="nearest") if any(sigmas) else volume_XYZ
