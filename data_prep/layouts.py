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
from vesselgan.core.errors import DataError, UsageError

KINDS = ("image", "label", "mask")
VOLUME_ENDINGS = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".mha", ".mhd", ".nrrd", ".mgz")
SHOWN = 5  # names of volumes that are left out


@dataclass(frozen=True)
class SubjectFiles:
    """The files of one subject; None where the layout has none or `missing` names it."""

    subject: str
    image: Path
    label: Path | None
    mask: Path | None
    missing: tuple[str, ...]
    """Faults in words: files that the layout promises and that are not there."""
    absent: tuple[Path, ...] = ()
    """Where those were looked for."""


@dataclass(frozen=True)
class CohortFiles:
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


def find_subjects(root: str | Path, layout: Layout, *, rename: Callable[[str], str] = str) -> CohortFiles:
    """Every subject that has an image, with label and mask where the layout names them; ids go through `rename`.

    Of several sessions the first by name is taken, with a warning: visits of one patient must not stand in two splits.
    DataError: no such folder, nothing in it that fits, two files for one subject, a name that is no text. UsageError: a
    pattern without `{subject}`, or a `{session}` that the image's pattern has not.
    """
    root = Path(root)
    if _printable(str(root)) != str(root):
        raise DataError(f"data.root={str(root)!r}: the path is not UTF-8; rename the folder")
    if not root.is_dir():
        raise DataError(
            f"data.root={root}: no such folder; give the folder that holds the cohort "
            "(the phantom's: python -m data_prep.make_phantom)"
        )
    patterns = {kind: getattr(layout, kind) for kind in KINDS if getattr(layout, kind) is not None}
    _refuse_patterns(patterns)
    names = sorted(_walk(root, patterns.values()))
    matches = {kind: _match(root, names, pattern, kind) for kind, pattern in patterns.items()}
    if not matches["image"]:
        raise DataError(
            f"{root}: no file fits data.layout.image={patterns['image']!r}; "
            + (f"there are {', '.join(map(_printable, names[:3]))}, ..." if names else "the folder holds no files")
        )
    subjects = [_files_of(root, subject, patterns, matches, rename) for subject in sorted(matches["image"])]
    warnings = [_visits_left_out(rename, subject, *matches["image"][subject]) for subject in sorted(matches["image"])]
    warnings += [
        f"{kind} without an image: {', '.join(rename(subject) for subject in surplus)}"
        for kind in patterns
        if (surplus := sorted(set(matches[kind]) - set(matches["image"])))
    ]
    matched = {str(match.path.relative_to(root)) for of in matches.values() for found in of.values() for match in found}
    volumes = {name for name in names if name.lower().endswith(VOLUME_ENDINGS)}
    warnings.append(_volumes_left_out(volumes - matched, matched, is_told=rename is str))
    return CohortFiles(tuple(sorted(subjects, key=lambda files: files.subject)), tuple(filter(None, warnings)))


def without_paths(text: str, files: SubjectFiles) -> str:
    """A fault or a warning with the subject's files by their kind: a path may name a patient."""
    for path in files.absent:
        text = text.replace(f": {path}", "")
    for kind in KINDS:
        if (path := getattr(files, kind)) is not None:
            text = text.replace(str(path), kind)
    return text


def _files_of(
    root: Path,
    subject: str,
    patterns: dict[str, str],
    matches: dict[str, dict[str, list[_Match]]],
    rename: Callable[[str], str],
) -> SubjectFiles:
    """The subject's files of its first visit."""
    first = matches["image"][subject][0]
    chosen = {
        kind: _of_session(matches[kind].get(subject, []), first, "{session}" in pattern)
        for kind, pattern in patterns.items()
    }
    absent = {
        kind: root / pattern.replace("{subject}", subject).replace("{session}", first.session)
        for kind, pattern in patterns.items()
        if chosen[kind] is None
    }
    return SubjectFiles(
        subject=rename(subject),
        **{kind: chosen.get(kind) for kind in KINDS},
        missing=tuple(
            f"{kind} is missing: {path}; supply it, or set data.layout.{kind}=null for the whole cohort"
            for kind, path in absent.items()
        ),
        absent=tuple(absent.values()),
    )


def _visits_left_out(rename: Callable[[str], str], subject: str, first: _Match, *later: _Match) -> str:
    """A warning where a subject has several visits; their names are often dates, which pseudonyms must not bear."""
    if not later:
        return ""
    if rename is not str:
        return f"{rename(subject)}: the first of {len(later) + 1} sessions is used: one visit per subject"
    others = ", ".join(match.session for match in later)
    return f"{subject}: session {first.session} is used, not {others}: one visit per subject"


def _volumes_left_out(left_out: set[str], matched: set[str], *, is_told: bool) -> str:
    """A warning of volumes that no pattern takes: first one of each folder of which nothing at all is taken."""
    if not left_out:
        return ""
    used = {name.split("/")[0] for name in matched}
    unused = {name.split("/")[0]: name for name in sorted(left_out, reverse=True) if name.split("/")[0] not in used}
    ranked = [*sorted(unused.values()), *sorted(left_out - set(unused.values()))]
    shown = ", ".join(map(_printable, ranked[:SHOWN])) + (", ..." if len(ranked) > SHOWN else "")
    what = f": {shown}" if is_told else ""  # pseudonymous ids must not be told by names of files
    return f"volumes that fit no pattern of data.layout and are left out ({len(left_out)}){what}"


def _refuse_patterns(patterns: dict[str, str]) -> None:
    for kind, pattern in patterns.items():
        setting = f"data.layout.{kind}={pattern!r}"
        if "{subject}" not in pattern or pattern.startswith("/") or ".." in pattern.split("/"):
            raise UsageError(f"{setting}: must be a path below data.root that contains {{subject}}")
        if "{session}" in pattern and "{session}" not in patterns["image"]:
            raise UsageError(f"{setting}: has a {{session}} that data.layout.image has not; write * for any one visit")


def _printable(name: str) -> str:
    """A file's name as text, whatever its bytes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _of_session(matches: list[_Match], image: _Match, is_named: bool) -> Path | None:
    """The file that belongs to the image's session; the only one where the pattern names no session."""
    if not is_named:
        return matches[0].path if matches else None
    return next((match.path for match in matches if match.session == image.session), None)


def _match(root: Path, names: Iterable[str], pattern: str, kind: str) -> dict[str, list[_Match]]:
    """Subject id -> the files that fit the whole pattern, one per session, in the order of the sessions."""
    expression = re.compile(_expression(pattern))
    matched: dict[str, list[_Match]] = {}
    for name in names:
        if (match := expression.fullmatch(name)) is None:
            continue
        if _printable(name) != name:
            raise DataError(
                f"{root}: the name {name!r} is not UTF-8, and ids stand in texts; rename the file or folder"
            )
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


def _walk(root: Path, patterns: Iterable[str]) -> Iterator[str]:
    """Names below `root` of everything that is not a folder, at any depth; links that lead nowhere included.

    Hidden names do not count: macOS leaves `._name` beside every file. Folders are entered through links too, each once
    on the way down. DataError for a folder as deep as a pattern that cannot be listed.
    """
    deepest = max(pattern.count("/") for pattern in patterns)
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        below, above = waiting.pop()
        try:
            stat = os.stat(root / below)
            entries = [] if (stat.st_dev, stat.st_ino) in above else list(os.scandir(root / below))
        except OSError as error:
            if below.count("/") > deepest:
                continue
            raise DataError(f"{root / below}: cannot be listed ({error.strerror}); check its permissions") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                waiting.append((f"{below}{entry.name}/", (*above, (stat.st_dev, stat.st_ino))))
            elif entry.is_symlink() or entry.is_file():
                yield below + entry.name


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: read, it says so
        return False
