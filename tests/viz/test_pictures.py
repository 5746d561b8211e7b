"""Pictures: orientation, windows, overlays, and a rendering whose geometry can be worked out by hand."""

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vesselgan.viz import pictures, rendering


def lit(picture):
    """Where a rendering without frame shows a vessel: pixels away from the panel's colour."""
    return np.abs(picture.astype(int) - np.asarray(pictures.PANEL)).max(axis=2) > 12


def hues(picture):
    """The numbers of reddish and of bluish vessel pixels: the first and the second of the component colours."""
    colour = picture[lit(picture)].astype(int)
    return int((colour[:, 0] > colour[:, 2]).sum()), int((colour[:, 0] < colour[:, 2]).sum())


def bar(shape=(32, 32, 32)):
    label = np.zeros(shape, np.uint8)
    label[4:28, 15:17, 15:17] = 1
    return label


def test_axial_picture_has_front_on_top_left_left():
    volume = np.zeros((4, 6, 8))
    volume[0, 5, 4] = 1.0  # the subject's left, front, in the middle slice
    picture = pictures.mid_slice(volume)
    assert picture.shape == (6, 4)
    assert picture[0, 0] == 1.0 and picture.sum() == 1.0


def test_projection_finds_every_lines_brightest_voxel():
    volume = np.zeros((3, 4, 5))
    volume[1, 2, 0], volume[1, 2, 4] = 3.0, 7.0
    assert pictures.mip(volume).shape == (4, 3)
    assert pictures.mip(volume)[1, 1] == 7.0  # y = 2 of 4 is row 4 - 1 - 2
    assert pictures.mip(volume, axis=0).max() == 7.0


def test_window_maps_limits_to_black_and_white():
    picture = pictures.grey(np.array([[-5.0, 10.0, 20.0, 99.0]]), 10.0, 30.0)
    assert picture[0, :, 0].tolist() == [0, 0, 128, 255]  # (20 - 10) / 20 * 255 = 127.5, rounded to even
    assert (picture[..., 0] == picture[..., 2]).all()


def test_overlay_blends_inside_the_mask_alone():
    picture = np.full((2, 2, 3), 100, np.uint8)
    mask = np.array([[1, 0], [0, 0]])
    painted = pictures.overlay(picture, mask, colour=(200, 0, 50), opacity=0.5)
    assert painted[0, 0].tolist() == [150, 50, 75]
    assert (painted.reshape(-1, 3)[1:] == 100).all() and (picture == 100).all()


def test_png_is_lossless_and_the_same_bytes():
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    data = pictures.encode_png(picture)
    assert data == pictures.encode_png(picture.copy())
    assert (np.asarray(Image.open(io.BytesIO(data))) == picture).all()
    assert b"tIME" not in data and b"tEXt" not in data


def test_rendering_has_left_left_and_top_on_top():
    label = np.zeros((32, 32, 32), np.uint8)
    label[2:6, 14:18, 26:30] = 1
    rows, columns = np.nonzero(lit(rendering.render_vessels(label, (1, 1, 1), 0.0, tilt_deg=0.0, size=96, frame=False)))
    assert columns.mean() < 32 and rows.mean() < 32


def test_rendering_respects_the_spacing():
    picture = rendering.render_vessels(bar((32, 32, 32)), (1.0, 1.0, 3.0), 0.0, tilt_deg=0.0, size=128, frame=False)
    rows, columns = np.nonzero(lit(picture))
    # 24 mm long and 6 mm high, and half a voxel at each end: 25 / 9
    assert abs((np.ptp(columns) + 1) / (np.ptp(rows) + 1) - 25 / 9) < 0.6


def test_nearer_vessel_hides_the_farther_one():
    label = np.zeros((32, 32, 32), np.uint8)
    label[4:28, 6:8, 15:17] = 1  # near: the camera stands behind, so small Y; the larger part
    label[8:24, 24:26, 15:17] = 1
    picture = rendering.render_vessels(label, (1, 1, 1), 0.0, tilt_deg=0.0, size=96, frame=False)
    assert hues(picture)[1] == 0
    turned = rendering.render_vessels(label, (1, 1, 1), 180.0, tilt_deg=0.0, size=96, frame=False)
    assert min(hues(turned)) > 50


def test_single_voxel_is_visible_and_nothing_is_not():
    label = np.zeros((24, 24, 24), np.uint8)
    empty = rendering.render_vessels(label, (1, 1, 1), size=96, frame=False)
    assert (empty == np.asarray(pictures.PANEL)).all()
    assert (rendering.render_vessels(label, (1, 1, 1), size=96) != np.asarray(pictures.PANEL)).any()
    label[12, 12, 12] = 1
    assert lit(rendering.render_vessels(label, (1, 1, 1), size=96, frame=False)).sum() >= 4


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    angle=st.floats(-400, 400),
    tilt=st.floats(-90, 90),
    density=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_rendering_takes_any_shape_and_angle(shape, angle, tilt, density):
    label = np.random.default_rng(0).random(shape) < density
    picture = rendering.render_vessels(label, (0.5, 0.6, 0.9), angle, tilt_deg=tilt, size=40)
    assert picture.shape == (40, 40, 3) and picture.dtype == np.uint8
