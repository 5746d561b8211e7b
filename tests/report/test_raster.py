"""Charts as PNG: what the SVG says, pixel by pixel."""

import io

import numpy as np
import pytest
from PIL import Image

from vesselgan.report import charts, raster

BLUE = (0x1F, 0x66, 0xB0)  # --s0 of the light page


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_every_chart_of_the_page_becomes_one_picture_named_by_its_title():
    x = np.arange(3.0)
    line = charts.line_chart([charts.Series("<a>", x, x)], x_label="x", y_label="y", title="Losses & more")
    dots = charts.dot_plot([charts.Dots("m", [0.5], 0.5)], x_label="Dice", title="Dice")
    assert [name for name, _ in raster.charts_of(line + "<p>no chart</p>" + dots)] == [
        "01-losses___more.png", "02-dice.png"
    ]  # fmt: skip


def test_a_box_lies_where_its_svg_has_it():
    ((_, png),) = raster.charts_of(charts.box_plot([charts.Box("a", [0.0, 1.0])], x_label="x", title="t", high=1.0))
    picture = pixels(png)
    # Quartiles 0.25 and 0.75 on 238 to 538, two pixels a unit, below a title of 26; the box covers 62 % of the white.
    colour = [round(0.62 * over + 0.38 * 255) for over in BLUE]
    row = picture[2 * (26 + 12 + 18) + 12]
    inside = np.flatnonzero((row == colour).all(axis=1))
    assert (inside.min(), inside.max()) == (2 * 313, 2 * 463)
    assert picture.shape == (2 * (26 + 12 + 36 + 42), 2 * 560, 3)


def test_a_curve_has_its_key_and_a_long_name_is_not_cut():
    long = charts.Series(
        "a name that is much longer than the chart is wide " * 2, np.array([0.0, 1.0]), np.array([1.0, 1.0])
    )
    ((_, png),) = raster.charts_of(charts.unit_chart([long], x_label="x", y_label="y", title="t"))
    picture = pixels(png)
    assert picture.shape[1] > 2 * 410
    assert (picture[-1] == 255).all() and (picture[:, -1] == 255).all()
    key = picture[2 * (26 + 13)]
    assert (key[2 * 20] == BLUE).all()
    # The curve at precision 1 runs from 58 to 388, 12 below two lines of heading.
    assert (picture[2 * (52 + 12), 2 * 70 : 2 * 380] == BLUE).all()


def test_what_it_cannot_draw_is_not_left_out_in_silence():
    with pytest.raises(AssertionError, match="<ellipse>"):
        list(raster.charts_of(charts._svg("<ellipse/>", 10, 10, "t")))
