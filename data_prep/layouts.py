"""Find a cohort's subjects and their files by the patterns of its layout; exact keys, whatever the folder's order.

A pattern is a path below the cohort's root: `{subject}` stands for the subject's id, `*` for anything inside one name.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vesselgan.config.schema import Layout
from vesselgan.errors import DataError, UsageError

KINDS = ("image", "label", "mask")


@dataclass(frozen=True)
class SubjectFiles:
    """The files of one subject; None where the layout has none or `missing` names it."""

    subject: str
    image: Path
    label: Path | None
    mask: Path | None
    missing: tuple[str, ...]
    """Faults in words: files that the layout promises and that are not there."""


@dataclass(frozen=True)
class Found:
    """What lies in a cohort's folder."""

    subjects: tuple[SubjectFiles, ...]
    """In the order of their ids."""
    warnings: tuple[str, ...]
    """Labels and masks without an image."""


def find_subjects(root: str | Path, layout: Layout) -> Found:
    """Every subject that has an image, with label and mask where the layout names them.

    DataError: no such folder, nothing in it that fits, two files for one subject. UsageError: a pattern without
    `{subject}`.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"data.root={root}: no such folder; give the folder that holds the cohort "
            "(the phantom's: python -m data_prep.make_phantom)"
        )
    patterns = {kind: getattr(layout, kind) for kind in KINDS if getattr(layout, kind) is not None}
    files = {kind: _match(root, pattern, kind) for kind, pattern in patterns.items()}
    if not files["image"]:
        seen = sorted(_walk(root, depth=patterns["image"].count("/")))[:3]
        raise DataError(
            f"{root}: no file fits data.layout.image={patterns['image']!r}; "
            + (f"there are {', '.join(seen)}, ..." if seen else "the folder holds no files")
        )
    subjects = []
    for subject in sorted(files["image"]):
        missing = tuple(
            f"{kind} is missing: {root / pattern.replace('{subject}', subject)}; "
            f"supply it, or set data.layout.{kind}=null for the whole cohort"
            for kind, pattern in patterns.items()
            if subject not in files[kind]
        )
        paths = {kind: files.get(kind, {}).get(subject) for kind in KINDS}
        subjects.append(SubjectFiles(subject, **paths, missing=missing))
    warnings = [
        f"{kind} without an image: {', '.join(sorted(set(files[kind]) - set(files['image'])))}"
        for kind in files
        if set(files[kind]) - set(files["image"])
    ]
    return Found(tuple(subjects), tuple(warnings))


def _match(root: Path, pattern: str, kind: str) -> dict[str, Path]:
    """Subject -> file. Hidden files do not count: some systems leave `._name` beside every name."""
    if "{subject}" not in pattern or pattern.startswith("/") or ".." in pattern.split("/"):
        raise UsageError(f"data.layout.{kind}={pattern!r}: must be a path below data.root that contains {{subject}}")
    expression = re.compile(_expression(pattern))
    matched: dict[str, Path] = {}
    for name in sorted(_walk(root, depth=pattern.count("/"))):
        if (match := expression.fullmatch(name)) is None:
            continue
        subject = match["subject"]
        if subject in matched:
            raise DataError(
                f"{root}: two files fit data.layout.{kind}={pattern!r} for subject {subject}: "
                f"{matched[subject].relative_to(root)} and {name}; make the pattern narrower or remove one"
            )
        matched[subject] = root / name
    return matched


def _expression(pattern: str) -> str:
    """The pattern as a regular expression; a second {subject} must hold the same id as the first."""
    wild = {"{subject}": "(?P<subject>[^/]+)", "*": "[^/]*"}
    pieces = [wild.get(piece, re.escape(piece)) for piece in re.split(r"(\{subject\}|\*)", pattern)]
    first, *later = "".join(pieces).split(wild["{subject}"])
    return first + wild["{subject}"] + "(?P=subject)".join(later)


def _walk(root: Path, depth: int) -> Iterator[str]:
    """Names of the files that lie exactly `depth` folders below `root`."""
    try:
        entries = list(os.scandir(root))
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({error.strerror}); check its permissions") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if depth == 0:
            if entry.is_file():
                yield entry.name
        elif entry.is_dir():
            yield from (f"{entry.name}/{below}" for below in _walk(Path(entry.path), depth - 1))
