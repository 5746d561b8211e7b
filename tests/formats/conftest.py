"""Small volumes for the tests of NIfTI."""

from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (7, 6, 5)
SPACING_MM = (0.5, 0.6, 0.7)


def an_image(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).integers(1, 1000, shape).astype(np.int16)


def an_affine() -> np.ndarray:
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = (-20, -30, 10)
    return affine


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, an_affine() if affine is None else affine), path)
    return path


def a_label() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:4, 3, 1:4] = 1
    return label
