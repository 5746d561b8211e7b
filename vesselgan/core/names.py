"""Names that come from data and become files: an id is one path component of printable characters."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vesselgan.core.errors import DataError, VesselganError, system_failures

MAX_BYTES = 200
"""Of an id in UTF-8: file systems take 255, and endings follow (`.nii.gz.partial`)."""


def is_id(name: object) -> bool:
    """Whether `name` can stand for itself as a file, in a message and in a table."""
    if not isinstance(name, str) or name[:1] in ("", ".") or "/" in name:
        return False
    return name.isprintable() and len(name.encode()) <= MAX_BYTES


def check_id(name: object, source: str | Path) -> str:
    """`name`, read from `source`. Raises DataError if it is no id."""
    if not is_id(name):
        raise DataError(
            f"{source}: {name!a} is no id: one name without / and without a leading dot, of printable characters, at "
            f"most {MAX_BYTES} bytes; rename it"
        )
    return str(name)


def path_in(folder: str | Path, name: str, ending: str = "") -> Path:
    """FOLDER/<name><ending>, the one way from a name in data to a file. Raises DataError if `name` is no id."""
    return Path(folder) / f"{check_id(name, folder)}{ending}"


def check_inside(root: str | Path, paths: Iterable[Path], remedy: str = "copy what it names") -> None:
    """Raises DataError for a file that a link places outside the folder `root`, which is read."""
    real_root = os.path.realpath(root)
    outside = [path for path in paths if not Path(os.path.realpath(path)).is_relative_to(real_root)]
    if outside:
        raise DataError(f"{outside[0]}: a link leads out of {root} ({len(outside)} such files); {remedy}")


def without_path(text: str, path: Path, shown: str) -> str:
    """A message about a file with `shown` in place of its path and of a link's target, which may name a patient."""
    try:
        target = f", a link to {on_one_line(os.readlink(path))}"
    except OSError:  # no link, or a folder that may not be looked into
        target = ""
    return text.replace(f"{path}{target}", shown).replace(str(path), shown)


@contextmanager
def hidden_paths(shown: Mapping[Path, str]) -> Iterator[None]:
    """Errors within, the system's too, say what is `shown` for a path in its place."""
    try:
        with system_failures():
            yield
    except VesselganError as error:
        text = str(error)
        for path, name in shown.items():
            text = without_path(text, path, name)
        if text == str(error):
            raise
        raise type(error)(text) from None


def object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a duplicate key, of which json silently keeps the last."""
    names = [name for name, _ in pairs]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"duplicate keys: {', '.join(duplicates)}")
    return dict(pairs)


def on_one_line(text: str) -> str:
    """A name from data, for a message: with escapes for what is not printable, line feeds among them."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
