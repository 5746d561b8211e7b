"""Tables as HTML, Markdown and CSV, and the section that the page is made of."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

NOT_RUN = "not run"


@dataclass(frozen=True)
class Part:
    """One section of the page, and the files that lie beside the page."""

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
    """`1 subject`, `2 subjects`; `plural` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def not_run(why: str) -> str:
    return f'<p class="notrun">{NOT_RUN}: {escape(why)}</p>'


def cell(text: str, kind: str = "") -> str:
    """A table cell; `not run` is set apart."""
    inner = f'<span class="notrun">{NOT_RUN}</span>' if text == NOT_RUN else escape(text)
    return f"<td{kind}>{inner}</td>"


def table(caption: str, heads: Sequence[str], lines: Iterable[Sequence[str]], *, classes: str = "") -> str:
    """A table whose texts are escaped; the caption is HTML already."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    rows = "".join(f"<tr><th>{escape(line[0])}</th>{''.join(cell(text) for text in line[1:])}</tr>" for line in lines)
    told = f"<caption>{caption}</caption>" if caption else ""
    named = f' class="{classes}"' if classes else ""
    return f'<div class="scroll"><table{named}>{told}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|").replace("<", "&lt;") for text in texts) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *(line(texts) for texts in lines)])


def csv_text(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Numbers at full precision, an empty field for None."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for line in lines:
        writer.writerow(["" if value is None else repr(value) if isinstance(value, float) else value for value in line])
    return out.getvalue()


def figure(name: str, body: str, caption: str, *, how_to_read: str = "") -> str:
    """A figure; body and captions are HTML already."""
    read = f' <span class="read">To read it: {how_to_read}</span>' if how_to_read else ""
    return f"<figure>{body}<figcaption><b>{name}.</b> {caption}{read}</figcaption></figure>"


def panels(inner: Iterable[tuple[str, str]], *, grid: str = "two") -> str:
    """Cards with a heading (text) over a body (HTML)."""
    cards = "".join(f'<div class="panel"><h4>{escape(title)}</h4>{body}</div>' for title, body in inner)
    return f'<div class="{grid}">{cards}</div>'
