"""The page's charts as PNG, for slides and papers: the same SVG, drawn in the page's light colours.

It knows what vesselgan.report.charts and the network diagrams use (line, path of M and L, rect, circle, text) and
refuses anything else.
"""

import re
from collections.abc import Iterator, Sequence
from html import unescape
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vesselgan.report.markup import file_name
from vesselgan.viz import html_page, pictures

SCALE = 2
"""Pixels per unit of the SVG."""
LINE_HEIGHT, MARGIN, KEY_LEFT = 26, 14, 44
HEAD_SIZE, TEXT_SIZE = 13.5, 12.0
CHART = re.compile(
    r'(?:<div class="legend">(?P<legend>.*?)</div>)?<div class="chart">'
    r'<svg viewBox="0 0 (?P<width>[\d.]+) (?P<height>[\d.]+)" role="img" aria-label="(?P<title>[^"]*)">'
    r"(?P<body>.*?)</svg>"
)
KEY = re.compile(r'<i class="swatch s(\d)"></i>(.*?)</span>')
# Class -> (colour's name, width, how much of it covers the ground).
STROKES = {
    "grid": ("rule", 1.0, 1.0),
    "axis": ("soft", 1.2, 1.0),
    "mean": ("ink", 1.4, 1.0),
    "arrow": ("soft", 1.2, 1.0),
}
FAINT, DOT = 0.32, 0.62

Colour = tuple[int, int, int]


def charts_of(html: str) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG) of every chart in this HTML, numbered in its order."""
    for number, found in enumerate(CHART.finditer(html), 1):
        title = unescape(found["title"])
        keys = KEY.findall(found["legend"] or "")
        canvas = _Canvas(float(found["width"]), float(found["height"]), title, keys)
        body = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", found["body"])  # no XML may hold these
        for element in ElementTree.fromstring(f"<svg>{body}</svg>"):
            canvas.draw(element)
        yield f"{number:02d}-{file_name(title)[:60].lower()}.png", pictures.encode_png(np.asarray(canvas.image))


class _Canvas:
    def __init__(self, width: float, height: float, title: str, keys: list[tuple[str, str]]) -> None:
        self.colours = {name: _rgb(value) for name, value in html_page.light_colours().items()}
        names = [title, *(unescape(name) for _, name in keys)]
        self.top = LINE_HEIGHT * len(names)
        widest = max(_font(HEAD_SIZE).getlength(_plain(name)) for name in names) / SCALE + KEY_LEFT + MARGIN
        size = round(max(width, widest) * SCALE), round((height + self.top) * SCALE)
        self.image = Image.new("RGB", size, self.colours["card"])
        self.pen = ImageDraw.Draw(self.image)
        for row, name in enumerate(names):
            y = LINE_HEIGHT * (row + 0.5) - self.top
            if row:
                colour = self.colours[f"s{keys[row - 1][0]}"]
                self._line([(MARGIN, y), (KEY_LEFT - 7, y)], colour, 3.0)
            left = KEY_LEFT if row else MARGIN
            self._write(left, y + 5, name, "start", self.colours["ink"], HEAD_SIZE)

    def draw(self, element: ElementTree.Element) -> None:
        get, kinds = element.get, (element.get("class") or "").split()
        number = {name: float(value) for name, value in element.items() if re.fullmatch(r"-?[\d.]+", value)}
        if element.tag == "line":
            name, width, cover = STROKES[kinds[0]]
            ends = [(number["x1"], number["y1"]), (number["x2"], number["y2"])]
            self._line(ends, self._mixed(name, cover), width)
        elif element.tag == "path":
            cover = FAINT if "faint" in kinds else 1.0
            name, width, _ = STROKES.get(kinds[0], (kinds[-1], 2.0, 1.0))
            for stretch in filter(None, (get("d") or "").split("M")):
                points = [tuple(map(float, point.split())) for point in stretch.split("L")]
                self._line(points, self._mixed(name, cover), 1.0 if "faint" in kinds else width)
        elif element.tag == "circle":
            box = [
                number["cx"] - number["r"],
                number["cy"] - number["r"],
                number["cx"] + number["r"],
                number["cy"] + number["r"],
            ]
            self.pen.ellipse(self._pixels(box), fill=self._mixed("s0", DOT))
        elif element.tag == "rect":
            opacity = re.search(r"fill-opacity:([\d.]+)", get("style") or "")
            box = [number["x"], number["y"], number["x"] + number["width"], number["y"] + number["height"]]
            edge = self.colours["s0"] if "layer" in kinds else None
            self.pen.rectangle(
                self._pixels(box), fill=self._mixed("s0", float(opacity[1]) if opacity else DOT), outline=edge
            )
        elif element.tag == "text":
            ink = "idle" if "notrun" in kinds else "ink" if {"name", "label"} & set(kinds) else "soft"
            x, y, text, colour = number["x"], number["y"], element.text or "", self.colours[ink]
            if get("transform"):
                self._write_upwards(x, y, text, colour)
            else:
                self._write(x, y, text, get("text-anchor") or "start", colour, TEXT_SIZE)
        else:
            raise AssertionError(f"a chart holds <{element.tag}>, which cannot be drawn")

    def _mixed(self, name: str, cover: float) -> Colour:
        pairs = zip(self.colours[name], self.colours["card"], strict=True)
        red, green, blue = (round(cover * over + (1 - cover) * under) for over, under in pairs)
        return red, green, blue

    def _pixels(self, box: list[float]) -> list[float]:
        return [SCALE * (value + self.top * (place % 2)) for place, value in enumerate(box)]

    def _line(self, points: Sequence[tuple[float, ...]], colour: Colour, width: float) -> None:
        flat = [(SCALE * x, SCALE * (y + self.top)) for x, y in points]
        self.pen.line(flat, fill=colour, width=max(1, round(SCALE * width)), joint="curve")

    def _write(self, x: float, y: float, text: str, anchor: str, colour: Colour, size: float) -> None:
        """Text on the baseline y."""
        side = {"start": "l", "middle": "m", "end": "r"}[anchor]
        where = (SCALE * x, SCALE * (y + self.top))
        self.pen.text(where, _plain(text), fill=colour, font=_font(size), anchor=f"{side}s")

    def _write_upwards(self, x: float, y: float, text: str, colour: Colour) -> None:
        """Turned by 90 degrees, its middle at (x, y)."""
        font = _font(TEXT_SIZE)
        length, height = round(font.getlength(_plain(text))) + 4, round(2 * SCALE * TEXT_SIZE)
        line = Image.new("RGB", (length, height), self.colours["card"])
        ImageDraw.Draw(line).text((length / 2, 0.7 * height), _plain(text), fill=colour, font=font, anchor="ms")
        corner = round(SCALE * x - 0.7 * height), round(SCALE * (y + self.top) - length / 2)
        self.image.paste(line.rotate(90, expand=True), corner)


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(SCALE * size)


def _plain(text: str) -> str:
    """Without the one sign of ours that the font has not."""
    return text.replace("\N{MULTIPLICATION SIGN}", "x")


def _rgb(text: str) -> Colour:
    red, green, blue = (int(text[k : k + 2], 16) for k in (1, 3, 5))
    return red, green, blue
