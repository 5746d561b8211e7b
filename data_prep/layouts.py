"""Find a cohort's subjects and their files by the patterns of its layout; exact keys, whatever the folder's order.

A pattern is a path below the cohort's root: `{subject}` stands for the subject's id, `{session}` for one of several
visits, `*` for anything inside one name.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vesselgan.config.schema import Layout
from vesselgan.errors import DataError, UsageError

KINDS = ("image", "label", "mask")
VOLUME_ENDINGS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".mgz")


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
    """Labels and masks without an image, and visits and volumes that are left out."""


@dataclass(frozen=True)
class _Match:
    """One file that fits a pattern."""

    path: Path
    session: str
    """Empty where the pattern names none."""


def find_subjects(root: str | Path, layout: Layout, *, rename: Callable[[str], str] = str) -> Found:
    """Every subject that has an image, with label and mask where the layout names them; ids go through `rename`.

    Of several sessions the first by name is taken, with a warning: visits of one patient must not stand in two splits.
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
    matches = {kind: _match(root, pattern, kind) for kind, pattern in patterns.items()}
    if not matches["image"]:
        seen = sorted(_walk(root, depth=patterns["image"].count("/")))[:3]
        raise DataError(
            f"{root}: no file fits data.layout.image={patterns['image']!r}; "
            + (f"there are {', '.join(seen)}, ..." if seen else "the folder holds no files")
        )
    subjects, warnings = [], []
    for subject in sorted(matches["image"]):
        first, *later = matches["image"][subject]
        if later:
            others = ", ".join(match.session for match in later)
            warnings.append(f"{rename(subject)}: session {first.session} is used, not {others}: one visit per subject")
        chosen = {
            kind: _of_session(matches[kind].get(subject, []), first, "{session}" in pattern)
            for kind, pattern in patterns.items()
        }
        missing = tuple(
            f"{kind} is missing: {root / pattern.replace('{subject}', subject).replace('{session}', first.session)}; "
            f"supply it, or set data.layout.{kind}=null for the whole cohort"
            for kind, pattern in patterns.items()
            if chosen[kind] is None
        )
        subjects.append(SubjectFiles(rename(subject), **{kind: chosen.get(kind) for kind in KINDS}, missing=missing))
    warnings += [
        f"{kind} without an image: {', '.join(rename(subject) for subject in surplus)}"
        for kind in patterns
        if (surplus := sorted(set(matches[kind]) - set(matches["image"])))
    ]
    matched = {str(match.path.relative_to(root)) for of in matches.values() for found in of.values() for match in found}
    if left_out := sorted(_volumes(root, patterns.values()) - matched):
        named = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        what = f": {named}" if rename is str else ""  # pseudonymous ids must not be told by names of files
        warnings.append(f"volumes that fit no pattern of data.layout and are left out ({len(left_out)}){what}")
    return Found(tuple(sorted(subjects, key=lambda files: files.subject)), tuple(warnings))


def _volumes(root: Path, patterns: Iterable[str]) -> set[str]:
    """Names of the volumes, by their endings, that lie as deep below `root` as any of the patterns."""
    names = {name for depth in {pattern.count("/") for pattern in patterns} for name in _walk(root, depth)}
    return {name for name in names if name.endswith(VOLUME_ENDINGS)}


def _of_session(matches: list[_Match], image: _Match, is_named: bool) -> Path | None:
    """The file that belongs to the image's session; the only one where the pattern names no session."""
    if not is_named:
        return matches[0].path if matches else None
    return next((match.path for match in matches if match.session == image.session), None)


def _match(root: Path, pattern: str, kind: str) -> dict[str, list[_Match]]:
    """Subject id -> the files that fit the whole pattern, one per session, in the order of the sessions.

    Hidden files do not count: macOS leaves `._name` beside every name.
    """
    if "{subject}" not in pattern or pattern.startswith("/") or ".." in pattern.split("/"):
        raise UsageError(f"data.layout.{kind}={pattern!r}: must be a path below data.root that contains {{subject}}")
    expression = re.compile(_expression(pattern))
    matched: dict[str, list[_Match]] = {}
    for name in sorted(_walk(root, depth=pattern.count("/"))):
        if (match := expression.fullmatch(name)) is None:
            continue
        subject = match["subject"]
        found = _Match(root / name, match.groupdict().get("session") or "")
        for other in matched.get(subject, []):
            if other.session == found.session:
                raise DataError(
                    f"{root}: two files fit data.layout.{kind}={pattern!r} for subject {subject}: "
                    f"{other.path.relative_to(root)} and {name}; make the pattern narrower or remove one"
                )
        matched.setdefault(subject, []).append(found)
    return {subject: sorted(found, key=lambda match: match.session) for subject, found in matched.items()}


def _expression(pattern: str) -> str:
    """The pattern as a regular expression; a second {subject} must hold the same id as the first, {session} too.

    An id does not begin with a dot: it becomes a file's name later.
    """
    wild = {"{subject}": r"(?P<subject>[^/.][^/]*)", "{session}": "(?P<session>[^/]+)", "*": "[^/]*"}
    again = {"{subject}": "(?P=subject)", "{session}": "(?P=session)", "*": wild["*"]}
    pieces, seen = [], set()
    for piece in re.split(r"(\{subject\}|\{session\}|\*)", pattern):
        pieces.append((again if piece in seen else wild).get(piece, re.escape(piece)))
        seen.add(piece)
    return "".join(pieces)


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
