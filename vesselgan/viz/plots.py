"""Charts by matplotlib in one style (vesselgan.mplstyle): SVG for a page, PNG and SVG for slides.

The same numbers give the same bytes. There is no display, and nothing global is set.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.viz.palette import LIGHT, SERIES

STYLE = Path(__file__).with_name("vesselgan.mplstyle")
WIDTH, HEIGHT, NARROW, SMALL = 400, 240, 340, 270
"""Of a figure, in points: a telephone shows it whole. NARROW is that of rows with names, SMALL the width of four beside
each other."""
MAX_POINTS = 500
SMOOTHING = 50
"""A running mean is over this fraction of the points."""
FAINT, DOT = 0.32, 0.62
DPI = 144
NAMESPACES = (' xmlns="http://www.w3.org/2000/svg"', ' xmlns:xlink="http://www.w3.org/1999/xlink"')


@dataclass(frozen=True)
class Chart:
    """One drawn chart."""

    title: str
    width: float
    """In points, as the SVG's own."""
    svg: str
    """A file of its own, in the light colours."""
    png: bytes

    @property
    def inline(self) -> str:
        """The SVG as part of a page, whose CSS variables give the colours."""
        svg = self.svg[self.svg.index("<svg") :]
        for namespace in NAMESPACES:
            svg = svg.replace(namespace, "")
        for name, colour in LIGHT.items():
            svg = svg.replace(colour, f"var(--{name})")
        return svg


@dataclass(frozen=True)
class Series:
    """One line; values that are not finite leave a gap."""

    name: str
    x: np.ndarray
    y: np.ndarray


def draw(title: str, size: tuple[float, float], paint: Callable[[Any], None]) -> Chart:
    """Draws a chart of `size` points (width, height); `paint` fills the matplotlib Axes."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    colours = dict.fromkeys(("text.color", "axes.labelcolor"), LIGHT["ink"]) | {"grid.color": LIGHT["rule"]}
    colours |= dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), LIGHT["soft"])
    with style.context([STYLE, colours | {"figure.facecolor": LIGHT["card"]}]):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        if title:
            per_line = int(size[0] / 8.6)
            figure.suptitle(_plain(textwrap.fill(title, per_line)), x=0.012, ha="left")
        paint(figure.add_subplot())
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # settled once, for both files
        svg, png = io.StringIO(), io.BytesIO()
        FigureCanvasSVG(figure).print_svg(svg, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        figure.dpi = DPI
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return Chart(title, size[0], svg.getvalue(), png.getvalue())


def _plain(text: str) -> str:
    """A dollar sign is no mathematics; characters that no XML may hold are left out."""
    return "".join(c for c in text if c.isprintable() or c == "\n").replace("$", r"\$")


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the finite ones of `window` values around each; NaN if there are none."""
    import pandas as pd

    finite = pd.Series(np.where(np.isfinite(values), values, np.nan))
    return finite.rolling(window, center=True, min_periods=1).mean().to_numpy()


def is_smoothed(series: Sequence[Series]) -> bool:
    """Whether `lines` draws running means, and the values faint behind them."""
    return any(len(s.y) // SMOOTHING > 1 for s in series)


def lines(series: Sequence[Series], *, x_label: str, y_label: str, title: str, middle: float = 99) -> Chart:
    """Faint: the values; strong: their running mean over a fiftieth of the points.

    The scale covers the middle 99 % (`middle`) of the values; others lie outside the plot.
    """
    finite = np.concatenate([s.y[np.isfinite(s.y)] for s in series])

    def paint(axes: Any) -> None:
        for s, colour in _coloured(series):
            window = max(1, len(s.y) // SMOOTHING)
            if window > 1:
                axes.plot(*_thin(s.x, s.y), color=colour, alpha=FAINT, linewidth=1)
            # A line of one point is not seen.
            marker = "o" if len(s.y) == 1 else None
            axes.plot(*_thin(s.x, running_mean(s.y, window)), color=colour, label=_plain(s.name), marker=marker)
        axes.set_ylim(*_limits(finite, middle))
        _finish(axes, x_label, y_label, len(series))
        if series[0].x.dtype.kind == "i":
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
            axes.xaxis.set_major_formatter("{x:,.0f}")

    return draw(title, (WIDTH, HEIGHT + 18 * len(series)), paint)


def _limits(finite: np.ndarray, middle: float) -> tuple[float, float]:
    """The scale of the values; one that begins near zero begins at zero."""
    if not len(finite):
        return 0.0, 1.0
    low, high = np.percentile(finite, [50 - middle / 2, 50 + middle / 2])
    pad = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    return (0.0 if 0 <= low < 0.2 * high else float(low - pad)), float(high + pad)


def curves(series: Sequence[Series], *, x_label: str, y_label: str, title: str) -> Chart:
    """Curves within the unit square, as they are."""

    def paint(axes: Any) -> None:
        for s, colour in _coloured(series):
            axes.plot(s.x, s.y, color=colour, label=_plain(s.name), clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        _finish(axes, x_label, y_label, len(series))

    return draw(title, (420, 430 + 18 * len(series)), paint)


def scatter(points: Sequence[tuple[str, float, float]], *, x_label: str, y_label: str, title: str) -> Chart:
    """One named dot per (name, x, y)."""

    def paint(axes: Any) -> None:
        _, x, y = zip(*points, strict=True)
        axes.plot(x, y, "o", color=LIGHT["s0"], alpha=DOT, markersize=10, markeredgewidth=0)
        axes.margins(0.18)
        for name, *position in points:
            is_right = position[0] > (min(x) + max(x)) / 2
            place: dict[str, Any] = {"xytext": (-9 if is_right else 9, 0), "ha": "right" if is_right else "left"}
            axes.annotate(_plain(name), position, textcoords="offset points", va="center", **place)
        axes.locator_params(nbins=4)
        _finish(axes, x_label, y_label, 0)

    return draw(title, (SMALL, SMALL), paint)


def dots(
    rows: Sequence[tuple[str, Sequence[float], float | None]], *, x_label: str, title: str, high: float = 1.0
) -> Chart:
    """Per (name, values, mean) a row with dots and a bar at the mean, on a scale from 0 to `high`."""

    def paint(axes: Any) -> None:
        for row, (_, values, mean) in enumerate(rows):
            if not len(values):
                axes.text(0.02 * high, row, "not run", color=LIGHT["idle"], style="italic", va="center")
            axes.plot(
                values, [row] * len(values), "o", color=LIGHT["s0"], alpha=DOT, markersize=9, markeredgewidth=0,
                clip_on=False,
            )  # fmt: skip
            if mean is not None:
                axes.plot([mean], [row], "|", color=LIGHT["ink"], markersize=22, markeredgewidth=1.4, clip_on=False)
        axes.set_xlim(0, high)
        _name_rows(axes, [name for name, *_ in rows], x_label)

    return draw(title, _rows_size(rows), paint)


def boxes(rows: Sequence[tuple[str, Sequence[float]]], *, x_label: str, title: str, high: float | None = None) -> Chart:
    """Per (name, values) a box of median and quartiles with whiskers at the extremes, on a scale from 0 to `high`.

    By default `high` is a little above the largest value.
    """
    largest = max((max(values) for _, values in rows), default=0.0)

    def paint(axes: Any) -> None:
        line = {"color": LIGHT["soft"], "linewidth": 1.2}
        axes.boxplot(
            [values for _, values in rows], positions=range(len(rows)), orientation="horizontal", whis=(0, 100),
            widths=0.55, patch_artist=True, boxprops={"facecolor": LIGHT["s0"], "alpha": DOT, "linewidth": 0},
            whiskerprops=line, capprops=line, medianprops={"color": LIGHT["ink"], "linewidth": 1.4}, manage_ticks=False,
        )  # fmt: skip
        axes.set_xlim(0, high if high is not None else 1.05 * largest or 1.0)
        _name_rows(axes, [name for name, _ in rows], x_label)

    return draw(title, _rows_size(rows), paint)


def _rows_size(rows: Sequence[Any]) -> tuple[float, float]:
    return NARROW, 80 + 36 * len(rows)


def _name_rows(axes: Any, names: list[str], x_label: str) -> None:
    """Names on the left, the first on top."""
    wrapped = [_plain(textwrap.fill(name, 22, max_lines=2, placeholder=" ...")) for name in names]
    axes.set_yticks(range(len(names)), wrapped, color=LIGHT["ink"])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    # As wide as the axes, beside the names.
    axes.set_xlabel(textwrap.fill(x_label, 30))


def _finish(axes: Any, x_label: str, y_label: str, num_names: int) -> None:
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(False, axis="x")
    if num_names:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02))


def _coloured(series: Sequence[Series]) -> list[tuple[Series, str]]:
    return [(s, LIGHT[SERIES[k % len(SERIES)]]) for k, s in enumerate(series)]


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about MAX_POINTS points: the smallest and the largest value of each interval, in their order."""
    if len(y) <= MAX_POINTS:
        return x, y
    keep: list[int] = []
    for interval in np.array_split(np.arange(len(y)), MAX_POINTS // 2):
        first, values = int(interval[0]), y[interval]
        is_empty = not np.isfinite(values).any()
        keep += [first] if is_empty else sorted({first + int(f(values)) for f in (np.nanargmin, np.nanargmax)})
    return x[keep], y[keep]


@dataclass(frozen=True)
class Box:
    """One layer of a network: the texts above, below and at the foot, its height and its shade, both 0 to 1."""

    above: str
    below: Sequence[str]
    foot: str
    height: float
    shade: float


def boxes_in_a_row(layers: Sequence[Box], *, title: str) -> Chart:
    """Boxes from left to right, joined by arrows: the layers of a network."""
    step, half = 162.0, 85.0

    def paint(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        axes.set(xlim=(0, step * len(layers)), ylim=(-half - 96, half + 24))
        axes.set_axis_off()
        for k, layer in enumerate(layers):
            middle, reach = step * (k + 0.5), max(7.0, half * layer.height)
            corner = (middle - 44, -reach)
            for face, alpha in ((True, layer.shade), (False, 1.0)):
                axes.add_patch(Rectangle(corner, 88, 2 * reach, fill=face, color=LIGHT["s0"], alpha=alpha, linewidth=1))
            axes.text(middle, half + 10, layer.above, ha="center")
            for row, text in enumerate(layer.below):
                axes.text(middle, -half - 22 - 16 * row, text, ha="center", color=LIGHT["soft"])
            axes.text(middle, -half - 88, layer.foot, ha="center")
            if k:
                arrow = {"arrowstyle": "->", "color": LIGHT["soft"], "linewidth": 1.2}
                axes.annotate("", (middle - 50, 0), (middle - step + 50, 0), arrowprops=arrow)

    return draw(title, (step * len(layers), 2 * half + 140), paint)


def intensities(shares: Sequence[float], vessel_shares: Sequence[float] | None) -> Chart:
    """Histograms of a volume (bars) and of its vessels (line), each to its own height; heights are square roots.

    Vessels are few. The first and the last bin hold what lies at the limits and would flatten the rest: they do not
    set the scale.
    """

    def heights(values: Sequence[float]) -> np.ndarray:
        return np.sqrt(np.minimum(1.0, np.asarray(values) / max(*values[1:-1], 1e-12)))

    def paint(axes: Any) -> None:
        axes.stairs(heights(shares), fill=True, color=LIGHT["bar"])
        if vessel_shares is not None:
            axes.plot(np.arange(len(shares)) + 0.5, heights(vessel_shares), color=LIGHT["vessel"], linewidth=1.6)
        axes.set(xticks=[], yticks=[], ylim=(0, 1.02))

    return draw("", (220, 180), paint)
