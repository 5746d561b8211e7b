"""Charts: any numbers, escaped names, the same bytes twice, a page's colours."""

import io
import math
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from vesselgan.viz import plots
from vesselgan.viz.palette import DARK, LIGHT
from vesselgan.viz.plots import Series


def test_running_mean_skips_what_is_not_finite():
    values = np.array([1.0, np.nan, 3.0, 5.0])
    assert plots.running_mean(values, 3) == pytest.approx([1.0, 2.0, 4.0, 4.0])
    assert math.isnan(plots.running_mean(np.array([np.nan]), 1)[0])


def test_long_series_keep_their_extremes_in_few_points():
    y = np.zeros(20_000)
    y[7_777], y[12_345] = 9.0, -9.0
    x, kept = plots._thin(np.arange(20_000.0), y)
    assert len(kept) <= plots.MAX_POINTS and kept.max() == 9.0 and kept.min() == -9.0
    assert (np.diff(x) > 0).all()


def test_few_points_have_no_running_mean():
    assert not plots.is_smoothed([Series("a", np.arange(99), np.arange(99.0))])
    assert plots.is_smoothed([Series("a", np.arange(100), np.arange(100.0))])


NUMBERS = [[1.0], [2.0, 2.0], [0.0, 0.0], [1e-9, 1e9], [-1e6, 1e6], [np.nan, 1.0], [np.nan]]


@pytest.mark.parametrize("y", NUMBERS)
def test_a_chart_takes_any_numbers_and_names(y):
    series = [Series("<b>$a^$\x00", np.arange(len(y)) + 10, np.array(y))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart = plots.lines(series, x_label="x", y_label="y", title="<t>")
    assert not re.search("nan|inf|<b>|<t>", chart.svg)
    names = ["".join(element.itertext()) for element in ElementTree.fromstring(chart.svg).iter()]
    assert "<b>$a^$" in names and "<t>" in names


def test_a_single_point_is_seen():
    series = [Series(name, np.array([x]), np.array([0.5])) for name, x in (("a", 1.0), ("b", 2.0))]
    level = Series("level", np.array([0.0, 3.0]), np.array([0.6, 0.6]))
    charts = [plots.lines([*some, level], x_label="x", y_label="y", title="") for some in ([], series)]
    without, with_points = (chart.svg.count("<use") for chart in charts)  # markers are drawn by reference
    assert with_points >= without + 2


def test_a_long_label_of_an_axis_stays_within_the_chart():
    label = "distance to the nearest patch (bar: median)"
    rows = [("a name of a row", [0.5], 0.5)]
    charts = [plots.dots(rows, x_label=text, title="") for text in ("Dice", label)]
    edges = [np.asarray(Image.open(io.BytesIO(chart.png)).convert("L"))[:, -2:] for chart in charts]
    assert edges[0].min() == edges[1].min() == edges[1].max()  # nothing is cut off at the right


def test_the_same_numbers_give_the_same_bytes():
    first, second = (plots.dots([("m", [0.5], 0.5)], x_label="Dice", title="Dice") for _ in range(2))
    assert first == second
    assert np.ptp(np.asarray(Image.open(io.BytesIO(first.png)))) > 100  # ink on paper


def test_an_inline_chart_has_the_pages_colours():
    inline = plots.scatter([("a", 1.0, 2.0), ("b", 2.0, 1.0)], x_label="x", y_label="y", title="t").inline
    assert inline.startswith("<svg") and "http" not in inline
    used = set(re.findall(r"var\(--([\w-]+)\)", inline))
    assert {"card", "ink", "soft", "s0", "rule"} <= used <= set(LIGHT)
    assert set(LIGHT) == set(DARK) and not re.search("#[0-9a-f]{6}", inline)


def test_a_box_has_median_quartiles_and_extremes():
    """Quartiles of 0.1, 0.2, 0.4, 0.8, linear: 0.175, 0.3, 0.5; the axis ends at 0 and 1."""
    values = [0.1, 0.2, 0.4, 0.8]
    svg = plots.boxes([("a", values)], x_label="Dice", title="t", high=1.0).svg
    xs = [
        [float(x) for x in re.findall(r"[ML] ([\d.]+) [\d.]+", path)] for path in re.findall(r'<path d="([^"]+)"', svg)
    ]
    zero, one = next((min(x), max(x)) for x in xs[1:] if len(x) == 4 or len(x) == 5)  # the plot's own rectangle
    placed = {round((x - zero) / (one - zero), 3) for path in xs for x in path}
    assert {0.1, 0.175, 0.3, 0.5, 0.8} <= placed
