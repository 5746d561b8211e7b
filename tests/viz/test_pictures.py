"""Pictures: orientation, windows, overlays, and a rendering whose geometry can be worked out by hand."""

import io
import time

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


def test_axial_picture_has_the_front_on_top_and_left_on_the_left():
    volume = np.zeros((4, 6, 8))
    volume[0, 5, 4] = 1.0  # the subject's left, front, in the middle slice
    picture = pictures.mid_slice(volume)
    assert picture.shape == (6, 4)
    assert picture[0, 0] == 1.0 and picture.sum() == 1.0


def test_projection_finds_the_brightest_voxel_of_every_line():
    volume = np.zeros((3, 4, 5))
    volume[1, 2, 0], volume[1, 2, 4] = 3.0, 7.0
    assert pictures.mip(volume).shape == (4, 3)
    assert pictures.mip(volume)[1, 1] == 7.0  # y = 2 of 4 is row 4 - 1 - 2
    assert pictures.mip(volume, axis=0).max() == 7.0


def test_window_maps_low_to_black_and_high_to_white_and_clips():
    picture = pictures.grey(np.array([[-5.0, 10.0, 20.0, 99.0]]), 10.0, 30.0)
    assert picture[0, :, 0].tolist() == [0, 0, 128, 255]  # (20 - 10) / 20 * 255 = 127.5, rounded to even
    assert (picture[..., 0] == picture[..., 2]).all()


def test_overlay_blends_inside_the_mask_alone_and_leaves_its_input():
    picture = np.full((2, 2, 3), 100, np.uint8)
    mask = np.array([[1, 0], [0, 0]])
    painted = pictures.overlay(picture, mask, colour=(200, 0, 50), opacity=0.5)
    assert painted[0, 0].tolist() == [150, 50, 75]
    assert (painted.reshape(-1, 3)[1:] == 100).all() and (picture == 100).all()


def test_outline_draws_the_border_and_not_the_inside():
    mask = np.zeros((7, 7))
    mask[1:6, 1:6] = 1
    drawn = pictures.outline(np.zeros((7, 7, 3), np.uint8), mask, colour=(255, 0, 0))
    assert (drawn[..., 0] > 0).sum() == 16  # the rim of a 5 x 5 square
    assert drawn[3, 3, 0] == 0


def test_sheet_places_every_picture_inside_its_gaps():
    small, wide = np.full((2, 2, 3), 255, np.uint8), np.full((2, 6, 3), 255, np.uint8)
    page = pictures.sheet([[small, wide], [wide]], gap=1, background=(0, 0, 0))
    assert page.shape == (2 + 2 + 3, 6 + 6 + 3, 3)
    assert (page > 0).sum() == small.size + 2 * wide.size


def test_enlarged_mask_keeps_its_share():
    mask = np.zeros((8, 8))
    mask[2:6, 2:6] = 1
    large = pictures.enlarge_mask(mask, 80, 80)
    assert abs(large.mean() - 0.25) < 0.02  # rounded corners take a little


def test_png_is_lossless_and_the_same_bytes_every_time():
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    data = pictures.encode_png(picture)
    assert data == pictures.encode_png(picture.copy())
    assert (np.asarray(Image.open(io.BytesIO(data))) == picture).all()
    assert b"tIME" not in data and b"tEXt" not in data


def test_rendering_shows_a_bar_along_x_as_a_lying_bar():
    picture = rendering.render_vessels(bar(), (1.0, 1.0, 1.0), 0.0, tilt_deg=0.0, size=128, frame=False)
    rows, columns = np.nonzero(lit(picture))
    # 34 mm (the box, a voxel at each end) fill 0.97 of 128 pixels: 3.65 pixels a mm. The smoothed field of a 2 x 2 bar
    # falls linearly from 0.69 to 0.14 in the voxel outside it, so the surface at 0.15 adds 0.48 mm a side
    assert abs(np.ptp(columns) + 1 - 24.9 * 3.65) < 3
    assert abs(np.ptp(rows) + 1 - 2.96 * 3.65) < 3
    assert abs(rows.mean() - 63.5) < 1.5 and abs(columns.mean() - 63.5) < 1.5


def test_rendering_turned_by_ninety_degrees_shows_the_bars_end():
    picture = rendering.render_vessels(bar(), (1.0, 1.0, 1.0), 90.0, tilt_deg=0.0, size=128, frame=False)
    rows, columns = np.nonzero(lit(picture))
    assert np.ptp(columns) < 16 and np.ptp(rows) < 16


def test_rendering_has_the_subjects_left_on_the_left_and_the_top_on_top():
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


def test_disconnected_parts_have_hues_of_their_own():
    label = bar()
    label[4:10, 26:28, 24:26] = 1
    whole = rendering.render_vessels(bar(), (1, 1, 1), 20.0, size=96, frame=False)
    parted = rendering.render_vessels(label, (1, 1, 1), 20.0, size=96, frame=False)
    plain = rendering.render_vessels(label, (1, 1, 1), 20.0, size=96, frame=False, by_component=False)
    assert rendering.count_components(label) == 2
    assert hues(whole)[1] == 0 and hues(plain)[1] == 0
    assert min(hues(parted)) > 20


def test_farther_vessel_is_darker():
    def brightness(y):
        label = np.zeros((32, 32, 32), np.uint8)
        label[4:28, y : y + 3, 15:18] = 1
        picture = rendering.render_vessels(label, (1, 1, 1), 0.0, tilt_deg=0.0, size=96, frame=False)
        return picture[lit(picture)].mean()

    assert brightness(2) > 1.3 * brightness(27)


def test_single_voxel_is_visible_and_an_empty_label_is_an_empty_frame():
    label = np.zeros((24, 24, 24), np.uint8)
    empty = rendering.render_vessels(label, (1, 1, 1), size=96, frame=False)
    assert (empty == np.asarray(pictures.PANEL)).all()
    assert (rendering.render_vessels(label, (1, 1, 1), size=96) != np.asarray(pictures.PANEL)).any()
    label[12, 12, 12] = 1
    assert lit(rendering.render_vessels(label, (1, 1, 1), size=96, frame=False)).sum() >= 4


@settings(max_examples=25, deadline=None)
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


def test_full_patch_renders_in_under_two_seconds_and_the_same_every_time():
    rng = np.random.default_rng(0)
    label = np.zeros((128, 128, 64), bool)
    steps = rng.normal(size=(12, 600, 3)).cumsum(axis=1) * 1.2 + np.array([64, 64, 32])
    inside = np.clip(np.round(steps), 2, [125, 125, 61]).astype(int).reshape(-1, 3)
    label[tuple(inside.T)] = True
    label = np.maximum.reduce([np.roll(label, d, axis) for axis in range(3) for d in (-1, 0, 1)])
    start = time.process_time()
    picture = rendering.render_vessels(label, (0.5, 0.5, 0.7))
    assert time.process_time() - start < 2.0  # 0.6 s measured on one core
    assert (picture == rendering.render_vessels(label, (0.5, 0.5, 0.7))).all()
