"""Seams and regions whose values are known by hand."""

import numpy as np
import pytest

from vesselgan.core.errors import DataError, UsageError
from vesselgan.metrics.volume_statistics import seam_statistic, volume_statistics


def ramp(shape: tuple[int, int, int]) -> np.ndarray:
    """A step of 1 from each voxel to the next, along every axis."""
    return np.add.reduce(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)


def test_a_ramp_has_no_seam():
    assert seam_statistic(ramp((20, 18, 16)), [[4, 8], [9], [8]]) == 1.0


def test_a_double_step_has_four_times_the_energy():
    image_XYZ = ramp((20, 18, 16))
    image_XYZ[8:] += 1
    # Along x the one border has energy 4, the planes beside it 1; along y and z nothing changes.
    assert seam_statistic(image_XYZ, [[8], [9], [8]]) == pytest.approx((4 + 1 + 1) / 3)
    # A step elsewhere counts against the border: of the six planes beside it one has energy 4.
    assert seam_statistic(image_XYZ, [[6], [9], [8]]) == pytest.approx((6 / 9 + 1 + 1) / 3)


def test_what_has_no_seam_to_measure_is_refused():
    for image_XYZ, borders in ((ramp((8, 8, 8)), [[], [4], [4]]), (np.ones((8, 8, 8)), [[4], [4], [4]])):
        with pytest.raises(UsageError, match="axis 0"):
            seam_statistic(image_XYZ, borders)


def test_a_line_half_in_the_brain():
    """Eleven voxels along x, six in the brain; 2 mm apart, so 20 mm long and 1 voxel of 1 mm thin along z."""
    label_XYZ = np.zeros((15, 7, 7), np.uint8)
    label_XYZ[2:13, 3, 3] = 1
    mask_XYZ = np.zeros_like(label_XYZ)
    mask_XYZ[:8] = 1
    statistics = volume_statistics(200.0 * label_XYZ, label_XYZ, mask_XYZ, (2.0, 1.5, 1.0))
    assert statistics.vessel_fraction == pytest.approx(11 / label_XYZ.size)
    assert (statistics.brain_share, statistics.num_components) == (pytest.approx(6 / 11), 1)
    assert (statistics.centreline_mm, statistics.consistency) == (pytest.approx(20.0), 1.0)
    assert statistics.brain_radius_mm.tolist() == [1.0] * 6
    assert statistics.outside_radius_mm.tolist() == [1.0] * 5


def test_an_empty_label_has_no_share():
    nothing_XYZ = np.zeros((6, 6, 6), np.uint8)
    statistics = volume_statistics(ramp((6, 6, 6)), nothing_XYZ, nothing_XYZ, (1.0, 1.0, 1.0))
    assert (statistics.brain_share, statistics.consistency, statistics.centreline_mm) == (None, None, 0.0)
    assert statistics.brain_radius_mm.size == statistics.outside_radius_mm.size == 0
    with pytest.raises(DataError, match="grid"):
        volume_statistics(ramp((6, 6, 6)), nothing_XYZ, nothing_XYZ[1:], (1.0, 1.0, 1.0))
