"""Volumes on a grid of another spacing over the same field of view."""

# X Y Z voxels of the canonical grid

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class TargetGrid(NamedTuple):
    """The grid that a volume is resampled to."""

    shape: tuple[int, int, int]
    affine: np.ndarray
    step: tuple[float, float, float]
    """New spacing in old voxels, per axis."""


def target_grid(
    shape: Sequence[int], affine: np.ndarray, spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> TargetGrid:
    """The grid with spacing `target_mm` whose outer faces are the old ones, to within half a new voxel on the far side.

    Voxel centres move: the first lies half a new voxel inside the face, not half an old one.
    """
    step_x, step_y, step_z = (float(target / old) for target, old in zip(target_mm, spacing_mm, strict=True))
    step = (step_x, step_y, step_z)
    num_x, num_y, num_z = (max(1, round(extent / s)) for extent, s in zip(shape, step, strict=True))
    to_old = np.diag([*step, 1.0])
    to_old[:3, 3] = [(s - 1) / 2 for s in step]
    return TargetGrid((num_x, num_y, num_z), affine @ to_old, step)


def resample_image(grid: TargetGrid, image_XYZ: np.ndarray) -> np.ndarray:
    """Cubic spline, within the image's own range; smoothed first on axes that get coarser (else it would alias)."""
    resampled_XYZ = _affine_transform(grid, _smoothed(image_XYZ.astype(np.float32, copy=False), grid), order=3)
    return np.clip(resampled_XYZ, image_XYZ.min(), image_XYZ.max(), out=resampled_XYZ)


def resample_label(grid: TargetGrid, label_XYZ: np.ndarray) -> np.ndarray:
    """uint8 {0, 1}: where the label, interpolated linearly, is at least one half."""
    return (_affine_transform(grid, _smoothed(label_XYZ.astype(np.float32), grid), order=1) >= 0.5).astype(np.uint8)


def _affine_transform(grid: TargetGrid, volume_XYZ: np.ndarray, *, order: int) -> np.ndarray:
    from scipy import ndimage

    offset = [(step - 1) / 2 for step in grid.step]
    return ndimage.affine_transform(
        volume_XYZ, np.array(grid.step), offset, output_shape=grid.shape, order=order, mode="nearest"
    )


def _smoothed(volume_XYZ: np.ndarray, grid: TargetGrid) -> np.ndarray:
    """A Gaussian that widens the old voxel's point spread to the new one's (widths add in quadrature)."""
    from scipy import ndimage

    sigmas = [0.5 * np.sqrt(max(step**2 - 1, 0.0)) for step in grid.step]
    return ndimage.gaussian_filter(volume_XYZ, sigmas, mode="nearest") if any(sigmas) else volume_XYZ
