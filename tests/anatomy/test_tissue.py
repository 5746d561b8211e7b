"""Tissue maps: of a head of known shells, of what a coil sees badly, and of nothing."""

import numpy as np
import pytest

from vesselgan.anatomy.tissue import BRAIN, HEAD, OUTSIDE, head_mask, tissue_map

SPACING_MM = (1.5, 1.5, 1.5)
SHAPE = (60, 64, 30)


def radius_of(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Distance from the axis through the middle of the axial slices, in voxels."""
    x, y, _ = np.indices(shape)
    return np.hypot(x - shape[0] / 2, y - shape[1] / 2)


def shells(noise: float = 0.03) -> np.ndarray:
    """Brain within 18 voxels, dark skull to 23, bright scalp to 26, air."""
    radius_XYZ = radius_of()
    image_XYZ = np.select([radius_XYZ < 18, radius_XYZ < 23, radius_XYZ < 26], [1.0, 0.1, 1.6], 0.02)
    return (image_XYZ + noise * np.abs(np.random.default_rng(0).normal(size=SHAPE))).astype(np.float32)


def test_shells_become_brain_head_and_outside():
    tissue_XYZ = tissue_map(shells(), radius_of() < 18, SPACING_MM)
    expected_XYZ = np.select([radius_of() < 18, radius_of() < 26], [BRAIN, HEAD], OUTSIDE)
    assert tissue_XYZ.dtype == np.uint8
    assert (tissue_XYZ != expected_XYZ).mean() < 0.05  # smoothing moves the skin by a voxel at most
    assert ((tissue_XYZ == BRAIN) == (expected_XYZ == BRAIN)).all()


def test_scale_does_not_matter():
    assert (head_mask(shells(), SPACING_MM) == head_mask(500 * shells(), SPACING_MM)).all()


def test_a_gap_in_the_scalp_does_not_open_the_skull():
    image_XYZ = shells()
    image_XYZ[30:33, 40:] = 0.02  # a fold: nothing bright from the skull to the skin
    assert head_mask(image_XYZ, SPACING_MM)[radius_of() < 22].mean() > 0.97


def test_vessels_and_dim_sides_change_little():
    image_XYZ = shells()
    image_XYZ[28:31, 30:33] = 12.0
    image_XYZ *= np.linspace(0.5, 1.5, SHAPE[0], dtype=np.float32)[:, None, None]
    assert (head_mask(image_XYZ, SPACING_MM) != (radius_of() < 26)).mean() < 0.05


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_nothing_holds_no_head(value):
    assert not head_mask(np.full(SHAPE, value, np.float32), SPACING_MM).any()
