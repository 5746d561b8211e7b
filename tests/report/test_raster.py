"""Charts as PNG."""

import io

import numpy as np
import pytest
from PIL import Image

from vesselgan.report import charts, raster


def test_every_chart_becomes_one_picture():
    x = np.arange(3.0)
    line = charts.line_chart([charts.Series("<a>", x, x)], x_label="x", y_label="y", title="Losses & more")
    dots = charts.dot_plot([charts.Dots("m", [0.5], 0.5)], x_label="Dice", title="Dice")
    pictures = dict(raster.charts_of(line + "<p>no chart</p>" + dots))
    assert list(pictures) == ["01-losses___more.png", "02-dice.png"]
    assert all(np.ptp(np.asarray(Image.open(io.BytesIO(png)))) > 100 for png in pictures.values())  # ink on paper


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(AssertionError, match="<ellipse>"):
        list(raster.charts_of(charts._svg("<ellipse/>", 10, 10, "t")))
