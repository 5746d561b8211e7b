"""Charts as inline SVG in the page's colours (the classes s0, s1, ... of its style), for light, dark and paper.

Every text is escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 560, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 12, 42
MAX_POINTS = 500
SQUARE = 330
SMALL = 270  # width of four charts side by side; larger ones would be scaled down, text included
COLOURS = 6  # s0 to s5 in the page's style


@dataclass(frozen=True)
class Series:
    """One line; values that are not finite leave a gap."""

    name: str
    x: np.ndarray
    y: np.ndarray


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    assert high > low
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the finite ones of `window` values around each; NaN if there are none."""
    kernel = np.ones(window)
    is_finite = np.isfinite(values)
    total = np.convolve(np.where(is_finite, values, 0.0), kernel, mode="same")
    count = np.convolve(is_finite.astype(float), kernel, mode="same")
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, title: str, middle: float = 99) -> str:
    """Faint: the values; strong: their running mean over a fiftieth of the points.

    The scale covers the middle 99 % (`middle`) of the values; others lie outside the plot.
    """
    finite = np.concatenate([s.y[np.isfinite(s.y)] for s in series])
    if not len(finite):
        return '<p class="notrun">no finite value was logged</p>'
    low, high = np.percentile(finite, [50 - middle / 2, 50 + middle / 2])
    pad = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    low = 0.0 if 0 <= low < 0.2 * high else float(low - pad)  # a scale that begins near zero begins at zero
    high = float(high + pad)
    start, stop = min(s.x[0] for s in series), max(s.x[-1] for s in series)
    stop = stop if stop > start else start + 1
    frame = _Frame(float(start), float(stop), low, high)
    body = [frame.axes(x_label, y_label)]
    for k, s in enumerate(series):
        window = max(1, len(s.y) // 50)
        if window > 1:
            body.append(f'<path class="line faint s{k % COLOURS}" d="{frame.path(s.x, s.y)}"/>')
        body.append(f'<path class="line s{k % COLOURS}" d="{frame.path(s.x, running_mean(s.y, window))}"/>')
    return _legend(series) + _svg("".join(body), WIDTH, HEIGHT, title)


def unit_chart(series: Sequence[Series], *, x_label: str, y_label: str, title: str) -> str:
    """Curves within the unit square, without a running mean."""
    frame = _Frame(0.0, 1.0, 0.0, 1.0, width=SQUARE + LEFT + RIGHT, height=SQUARE + TOP + BOTTOM)
    body = [frame.axes(x_label, y_label)]
    body += [f'<path class="line s{k % COLOURS}" d="{frame.path(s.x, s.y)}"/>' for k, s in enumerate(series)]
    return _legend(series) + _svg("".join(body), frame.width, frame.height, title)


@dataclass(frozen=True)
class Point:
    """One model in a scatter plot."""

    name: str
    x: float
    y: float


def scatter(points: Sequence[Point], *, x_label: str, y_label: str, title: str) -> str:
    """One named dot per point."""
    (x_low, x_high), (y_low, y_high) = (_padded([getattr(point, axis) for point in points]) for axis in ("x", "y"))
    frame = _Frame(x_low, x_high, y_low, y_high, width=SMALL, height=SMALL - 40)
    body = [frame.axes(x_label, y_label)]
    for point in points:
        x, y = frame.x(point.x), frame.y(point.y)
        is_right = x > (LEFT + frame.width - RIGHT) / 2
        side = f'x="{x - 9:.1f}" text-anchor="end"' if is_right else f'x="{x + 9:.1f}"'
        body.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        body.append(f'<text class="label" {side} y="{y + 4:.1f}">{escape(point.name)}</text>')
    return _svg("".join(body), frame.width, frame.height, title)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    pad = 0.15 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 1.0
    return min(values) - pad, max(values) + pad


def _legend(series: Sequence[Series]) -> str:
    keys = "".join(
        f'<span class="key"><i class="swatch s{k % COLOURS}"></i>{escape(s.name)}</span>' for k, s in enumerate(series)
    )
    return f'<div class="legend">{keys}</div>'


def _svg(body: str, width: float, height: float, title: str) -> str:
    view = f"0 0 {width:g} {height:g}"
    return f'<div class="chart"><svg viewBox="{view}" role="img" aria-label="{escape(title)}">{body}</svg></div>'


class _Frame:
    """Data to picture coordinates, and the axes."""

    def __init__(
        self, x_low: float, x_high: float, y_low: float, y_high: float, *, width: int = WIDTH, height: int = HEIGHT
    ) -> None:
        self.x_low, self.x_high, self.y_low, self.y_high = x_low, x_high, y_low, y_high
        self.width, self.height = width, height

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (self.height - TOP - BOTTOM)

    def path(self, x: np.ndarray, y: np.ndarray) -> str:
        """A path through at most about MAX_POINTS points, with gaps where values are missing or out of the frame."""
        points = [(float(a), float(b)) for a, b in zip(*_thin(x, y), strict=True)]
        commands, pen = [], ""
        for first, second in zip(points, points[1:], strict=False):
            inside = _clip(first, second, self.y_low, self.y_high)
            if inside is None:
                continue
            start, end = (f"{self.x(a):.1f} {self.y(b):.1f}" for a, b in inside)
            commands.append(f"L{end}" if start == pen else f"M{start}L{end}")
            pen = end
        return "".join(commands)

    def axes(self, x_label: str, y_label: str) -> str:
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        marks = []
        for value in ticks(self.y_low, self.y_high):
            y = self.y(value)
            line_class = "axis" if value == 0 else "grid"
            marks.append(f'<line class="{line_class}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            marks.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
        for value in ticks(self.x_low, self.x_high, max(2, self.width // 90)):
            marks.append(
                f'<text x="{self.x(value):.1f}" y="{bottom + 17}" text-anchor="middle">{_number(value)}</text>'
            )
        marks.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        middle, end = (LEFT + right) / 2, self.height - 5
        marks.append(f'<text class="name" x="{middle}" y="{end}" text-anchor="middle">{escape(x_label)}</text>')
        y = (TOP + bottom) / 2
        rotation = f'transform="rotate(-90 13 {y})"'
        marks.append(f'<text class="name" x="13" y="{y}" text-anchor="middle" {rotation}>{escape(y_label)}</text>')
        return "".join(marks)


def _clip(
    first: tuple[float, float], second: tuple[float, float], low: float, high: float
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Clips the segment between two points to y in [low, high]; None if nothing is left or a value is NaN."""
    (x, y), (dx, dy) = first, (second[0] - first[0], second[1] - first[1])
    if not math.isfinite(dy):
        return None
    if dy == 0:
        return (first, second) if low <= y <= high else None
    edges = sorted(((low - y) / dy, (high - y) / dy))
    begin, end = max(0.0, edges[0]), min(1.0, edges[1])
    return ((x + begin * dx, y + begin * dy), (x + end * dx, y + end * dy)) if begin < end else None


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about MAX_POINTS points: the smallest and the largest value of each interval, in their order."""
    if len(y) <= MAX_POINTS:
        return x, y
    keep: list[int] = []
    for interval in np.array_split(np.arange(len(y)), MAX_POINTS // 2):
        first, values = int(interval[0]), y[interval]
        if np.isfinite(values).any():
            keep += sorted({first + int(np.nanargmin(values)), first + int(np.nanargmax(values))})
        else:
            keep.append(first)
    return x[keep], y[keep]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


@dataclass(frozen=True)
class Dots:
    """One line of a dot plot: a value per subject, and their mean."""

    name: str
    values: Sequence[float]
    mean: float | None


def dot_plot(lines: Sequence[Dots], *, x_label: str, title: str, low: float = 0.0, high: float = 1.0) -> str:
    """A dot per value and a bar at the mean, one line per method, on a scale from `low` to `high`."""
    rows = _NamedRows([line.name for line in lines], low, high)
    marks = []
    for k, line in enumerate(lines):
        y = rows.y(k)
        if not line.values:
            marks.append(f'<text class="notrun" x="{rows.LEFT + 8}" y="{y + 4:.1f}">not run</text>')
        marks += [f'<circle class="dot" cx="{rows.x(value):.1f}" cy="{y:.1f}" r="4.5"/>' for value in line.values]
        if line.mean is not None:
            ends = f'y1="{y - 11:.1f}" y2="{y + 11:.1f}"'
            marks.append(f'<line class="mean" x1="{rows.x(line.mean):.1f}" x2="{rows.x(line.mean):.1f}" {ends}/>')
    return rows.svg("".join(marks), x_label, title)


@dataclass(frozen=True)
class Box:
    """One line of a box plot: the values of one method."""

    name: str
    values: Sequence[float]


def box_plot(boxes: Sequence[Box], *, x_label: str, title: str, high: float | None = None) -> str:
    """Median, quartiles (linear), whiskers at minimum and maximum, one line per method, from 0 to `high`.

    By default `high` is a little above the largest value.
    """
    largest = max((value for box in boxes for value in box.values), default=0.0)
    rows = _NamedRows([box.name for box in boxes], 0.0, high if high is not None else 1.05 * largest or 1.0)
    marks = []
    for k, box in enumerate(boxes):
        y = rows.y(k)
        least, first, median, third, most = (rows.x(float(q)) for q in np.percentile(box.values, [0, 25, 50, 75, 100]))
        marks.append(f'<line class="axis" x1="{least:.1f}" x2="{most:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        for end in (least, most):
            marks.append(f'<line class="axis" x1="{end:.1f}" x2="{end:.1f}" y1="{y - 6:.1f}" y2="{y + 6:.1f}"/>')
        width = max(third - first, 1.0)
        marks.append(f'<rect class="dot" x="{first:.1f}" y="{y - 10:.1f}" width="{width:.1f}" height="20"/>')
        marks.append(f'<line class="mean" x1="{median:.1f}" x2="{median:.1f}" y1="{y - 10:.1f}" y2="{y + 10:.1f}"/>')
    return rows.svg("".join(marks), x_label, title)


class _NamedRows:
    """A value axis below rows with names on their left."""

    LEFT, RIGHT, ROW = 238, WIDTH - RIGHT, 36

    def __init__(self, names: Sequence[str], low: float, high: float) -> None:
        self.names, self.low, self.high = names, low, high
        self.bottom = TOP + self.ROW * len(names)

    def x(self, value: float) -> float:
        return self.LEFT + (value - self.low) / (self.high - self.low) * (self.RIGHT - self.LEFT)

    def y(self, row: int) -> float:
        return TOP + self.ROW * (row + 0.5)

    def svg(self, body: str, x_label: str, title: str) -> str:
        bottom, left, right = self.bottom, self.LEFT, self.RIGHT
        marks = []
        for value in ticks(self.low, self.high):
            x = f"{self.x(value):.1f}"
            marks.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
            marks.append(f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{_number(value)}</text>')
        for row, name in enumerate(self.names):
            y = f"{self.y(row) + 4:.1f}"
            marks.append(f'<text class="label" x="{left - 12}" y="{y}" text-anchor="end">{escape(name)}</text>')
        marks += [body, f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>']
        middle = (left + right) / 2
        marks.append(f'<text class="name" x="{middle}" y="{bottom + 36}" text-anchor="middle">{escape(x_label)}</text>')
        return _svg("".join(marks), WIDTH, bottom + 42, title)
