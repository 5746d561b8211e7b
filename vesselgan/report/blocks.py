"""What the page's sections are made of: texts, tables, figures. Templates turn them into HTML; Markdown has no figures.

Blocks hold plain text. A cell or a row's name may have several lines; all but the first are small print.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from vesselgan.viz.plots import Chart

NOT_RUN = "not run"
MIN_FOR_SPREAD = 3
"""Below so many values an SD, a median or a box says nothing, and is left out."""
IDENTICAL = "Only identical voxels are found; another scan of a patient, or a changed copy, is not."
"""What a comparison with the training volumes by their hashes can show."""
FORMULA_SIGNS = ("=", "+", "-", "@")
SIGNED_NUMBER = re.compile(r"[-+]?([\d.,]+|inf|nan)?( \([\w.,+\- ]*\))?")
"""`-0.12 (0.01)`, a bare dash."""
Files = dict[str, str | bytes]


@dataclass(frozen=True)
class Text:
    """A paragraph, a bold `name` before it."""

    kind: ClassVar[str] = "text"
    text: str
    name: str = ""
    style: str = ""
    """`note`, `notrun` or empty."""


@dataclass(frozen=True)
class Heading:
    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Table:
    """A frame of texts whose index has the rows' names; columns of two levels get a head of two rows."""

    kind: ClassVar[str] = "table"
    frame: pd.DataFrame
    name: str = ""
    caption: str = ""
    style: str = ""
    paper_rows: int = 0
    """The last rows, shaded as the paper's."""

    @property
    def heads(self) -> list[list[tuple[str, int]]]:
        """Per row of the head, the texts with their number of columns."""
        *upper, last = zip(*self.frame.columns, strict=True) if self.frame.columns.nlevels > 1 else [self.frame.columns]
        groups = [[(str(text), len(list(group))) for text, group in itertools.groupby(row)] for row in upper]
        return [*groups, [(str(text), 1) for text in last]]

    @property
    def edges(self) -> set[int]:
        """Columns that begin a group of the upper head."""
        *upper, _ = self.heads
        return {0, *itertools.accumulate(width for row in upper for _, width in row)} if upper else set()


@dataclass(frozen=True)
class Picture:
    """Images (HxWx3 uint8, each with its description) above a text."""

    images: Sequence[tuple[np.ndarray, str]]
    name: str = ""
    text: str = ""


@dataclass(frozen=True)
class Panel:
    """A card of charts or pictures; `text` stands below them."""

    cells: Sequence[Chart | Picture]
    title: str = ""
    text: str = ""
    grid: str = "one"


@dataclass(frozen=True)
class Figure:
    kind: ClassVar[str] = "figure"
    name: str
    panels: Sequence[Panel]
    caption: str
    how_to_read: str = ""
    grid: str = "two"
    key: dict[str, str] = field(default_factory=dict)
    """Style of a coloured patch -> its meaning."""

    @property
    def charts(self) -> list[Chart]:
        return [cell for panel in self.panels for cell in panel.cells if isinstance(cell, Chart)]


Block = Text | Heading | Table | Figure


@dataclass(frozen=True)
class Section:
    """One section of the page, and the files that are written beside the page."""

    title: str
    blocks: Sequence[Block]
    files: Files = field(default_factory=dict)
    """File name -> content."""

    @property
    def anchor(self) -> str:
        return file_name(self.title).lower()


def not_run(reason: str) -> Text:
    return Text(f"{NOT_RUN}: {reason}", style="notrun")


def not_run_rows(names: Iterable[str]) -> list[Text]:
    """One line for all rows of a table that were not run; none if all were."""
    names = list(names)
    return [not_run(f"{', '.join(names)}.")] if names else []


def file_name(text: str) -> str:
    """`text` as a name that every file system takes."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)


def mean_sd(mean: float, sd: float | None, digits: int = 3, *, n: int = MIN_FOR_SPREAD) -> str:
    """`0.912 (0.010)`; of fewer than MIN_FOR_SPREAD values (`n`) the mean alone."""
    text = f"{mean:.{digits}f}"
    return text if sd is None or np.isnan(sd) or n < MIN_FOR_SPREAD else f"{text} ({sd:.{digits}f})"


def text_frame(rows: Iterable[Sequence[str]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows of texts, the first of which is the row's name, under columns, the first of which is the names'."""
    rows = list(rows)
    index = pd.Index([row[0] for row in rows], name=columns[0], dtype=object)
    return pd.DataFrame([list(row[1:]) for row in rows], index=index, columns=list(columns[1:]), dtype=object)


def csv_text(frame: pd.DataFrame) -> str:
    """CSV with numbers at full precision and an empty field for a missing one; a named index is a column.

    A text that a spreadsheet would compute gets an apostrophe in front: names come from files.
    """
    frame = frame.map(_no_formula).rename(columns=_no_formula)
    if frame.index.name is not None:
        frame.index = frame.index.map(_no_formula)
    return frame.to_csv(index=frame.index.name is not None, lineterminator="\n")


def _no_formula(cell: Any) -> Any:
    is_formula = isinstance(cell, str) and cell.lstrip().startswith(FORMULA_SIGNS) and not SIGNED_NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def numbers_csv(rows: Iterable[Sequence[object]], columns: Sequence[str]) -> str:
    """CSV of a tidy table: one number per line."""
    return csv_text(pd.DataFrame(list(rows), columns=list(columns), dtype=object))


def markdown(blocks: Iterable[Block]) -> str:
    """Headings, texts and tables; `<` and `|` are escaped."""
    texts = []
    for block in blocks:
        if isinstance(block, Heading):
            texts.append(f"## {_escaped(block.text)}")
        elif isinstance(block, Text):
            texts.append(_escaped(f"{block.name} {block.text}".strip()))
        elif isinstance(block, Table):
            caption = _escaped(block.caption)
            texts.append(f"**{_escaped(block.name)}** {caption}".strip() if block.name else caption)
            texts.append("\n".join(_table_lines(block.frame)))
    return "\n\n".join(filter(None, texts)) + "\n"


def _table_lines(frame: pd.DataFrame) -> Iterator[str]:
    columns = [": ".join(filter(None, column)) if isinstance(column, tuple) else column for column in frame.columns]
    yield _line([frame.index.name or "", *columns])
    yield "|" + "---|" * (1 + len(columns))
    for name, *cells in frame.itertuples(name=None):
        yield _line([name, *cells])


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(_escaped(text).replace("|", "\\|").replace("\n", "; ") for text in texts) + " |"


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;")
