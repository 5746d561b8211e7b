"""HTML, Markdown and CSV: tables and figures, and the section that the page is made of."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

NOT_RUN = "not run"


@dataclass(frozen=True)
class Section:
    """One section of the page, and the files that are written beside the page."""

    title: str
    html: str
    files: dict[str, str | bytes] = field(default_factory=dict)
    """File name -> content."""

    @property
    def anchor(self) -> str:
        return file_name(self.title).lower()


def file_name(text: str) -> str:
    """`text` as a name that every file system takes."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 subject`, `2 subjects`; `plural` if it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def not_run(reason: str) -> str:
    return f'<p class="notrun">{NOT_RUN}: {escape(reason)}</p>'


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, classes: str = "", paper_rows: int = 0
) -> str:
    """A table with escaped texts; the caption is HTML already. The last `paper_rows` rows are shaded as the paper's."""
    rows = list(rows)
    head = "".join(f"<th>{escape(text)}</th>" for text in columns)
    body = ""
    for number, (title, *texts) in enumerate(rows):
        row_class = ' class="paper"' if number >= len(rows) - paper_rows else ""
        cells = "".join(f"<td>{_not_run_span(text)}</td>" for text in texts)
        body += f"<tr{row_class}><th>{escape(title)}</th>{cells}</tr>"
    caption = f"<caption>{caption}</caption>" if caption else ""
    table_class = f' class="{classes}"' if classes else ""
    return (
        f'<div class="scroll"><table{table_class}>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _not_run_span(text: str) -> str:
    return f'<span class="notrun">{NOT_RUN}</span>' if text == NOT_RUN else escape(text)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; `|` and `<` are escaped."""

    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|").replace("<", "&lt;") for text in texts) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *(line(row) for row in rows)])


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV with numbers at full precision and an empty field for None."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if value is None else repr(value) if isinstance(value, float) else value for value in row])
    return buffer.getvalue()


def figure(name: str, body: str, caption: str, *, how_to_read: str = "") -> str:
    """A figure; body and captions are HTML already."""
    hint = f' <span class="read">How to read it: {how_to_read}</span>' if how_to_read else ""
    return f"<figure>{body}<figcaption><b>{name}.</b> {caption}{hint}</figcaption></figure>"


def panels(bodies: Iterable[tuple[str, str]], *, grid: str = "two") -> str:
    """Cards with a heading (text) over a body (HTML)."""
    cards = "".join(f'<div class="panel"><h4>{escape(title)}</h4>{body}</div>' for title, body in bodies)
    return f'<div class="{grid}">{cards}</div>'
