"""Intensities: a volume's limits become 0 and 255, stored patches come back, nothing undefined passes."""

import numpy as np
import pytest

from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.intensities import (
    from_stored,
    intensity_limits,
    num_outside,
    scale_to_255,
    to_stored,
    widest_gap_below,
)


def test_limits_are_minimum_and_percentile_of_nonzero_voxels():
    image = np.zeros((10, 10, 3), np.float32)
    image.flat[:101] = np.arange(100, 201)  # 101 values: percentile p is 100 + p
    assert intensity_limits(image, (0, 90)) == (100, 190)
    assert intensity_limits(image, (10, 90)) == (110, 190)
    assert (num_outside(image, (100, 190)), num_outside(image, (110, 190))) == (10, 20)


def test_a_gap_below_the_tissue_is_measured():
    image = np.zeros((10, 10, 3), np.float32)
    image.flat[:100] = [-2000] * 20 + list(range(100, 180))
    assert widest_gap_below(image, (-2000, 170)) == (-2000, 100, 0.2)
    assert widest_gap_below(image, (100, 170)) == (100, 101, 0.21)  # of equal gaps the first


@pytest.mark.parametrize("image", [np.zeros((2, 2, 2)), np.array([[[0, 3, 3]]])])
def test_one_value_has_no_limits(image):
    with pytest.raises(DataError):
        intensity_limits(image.astype(np.float32), (0, 99))


def test_intensities_beyond_single_precision_are_refused():
    for low, high in ((1e-42, 2e-42), (-3e38, 3e38)):
        with pytest.raises(DataError, match="single precision"):
            intensity_limits(np.array([[[0, low, high]]], np.float32), (0, 100))


def test_scaling_maps_the_limits_to_0_and_255():
    image = np.array([[[0, 100, 150, 200, 900]]], np.float32)
    scaled = scale_to_255(image, (100.0, 200.0))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[[0, 0, 127.5, 255, 255]]], rtol=1e-6)  # float32
    np.testing.assert_array_equal(image, [[[0, 100, 150, 200, 900]]])


def test_all_65536_stored_intensities_round_trip():
    stored = np.arange(65536, dtype=np.uint16)
    image = from_stored(stored)
    assert image.dtype == np.float32 and image[0] == 0 and image[-1] == 255
    np.testing.assert_array_equal(to_stored(image), stored)


def test_patch_scaling_spans_0_to_255():
    np.testing.assert_allclose(from_stored(np.uint16([100, 150, 300]), "patch"), [0, 63.75, 255], rtol=1e-6)
    for high in range(1, 65536, 97):
        assert from_stored(np.uint16([0, high]), "patch").tolist() == [0, 255]
    for value in (0, 77, 65535):
        np.testing.assert_array_equal(from_stored(np.full(4, value, np.uint16), "patch"), np.zeros(4))
    with pytest.raises(UsageError, match="slice"):
        from_stored(np.zeros(1, np.uint16), "slice")


@pytest.mark.parametrize("value", [-0.1, 255.1, np.nan])
def test_what_is_outside_0_to_255_is_not_stored(value):
    with pytest.raises(DataError):
        to_stored(np.float32([0, value]))
