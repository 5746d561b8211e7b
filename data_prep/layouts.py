"""Find a cohort's subjects and their files by the patterns of its layout; exact ids, whatever the folder's order.

A pattern is a path below the cohort's root: `{subject}` stands for the subject's id, `{session}` for one of several
visits, `*` for anything inside one name, `{a,b}` for one of several texts, `[...]` for a part that may be absent.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from vesselgan.config.schema import Layout
from vesselgan.core.errors import DataError, UsageError
from vesselgan.core.names import check_id, check_inside, hidden_paths, on_one_line, without_path

KINDS = ("image", "label", "mask")
LEFT_OUT = "volumes that fit no pattern of data.layout and are left out"
VOLUME_ENDINGS = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".mha", ".mhd", ".nrrd", ".mgz")
MAX_SHOWN = 5  # names of volumes in one warning
# dcm2niix: IMG_Eq_1, IMG_Tilt_1, IMG1a
_CONVERTER_SUFFIX = re.compile(r"(_eq(_\d+)?|_tilt(_\d+)?|(?<=\d)[a-z])+$")
_TOKEN = re.compile(r"(\{subject\}|\{session\}|\{[^{}]*,[^{}]*\}|[*\[\]])")
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class SubjectFiles:
    """The files of one subject; None where the layout has none or `missing` names it."""

    subject: str
    image: Path
    label: Path | None
    mask: Path | None
    missing: tuple[str, ...]
    """One message for each file that the layout promises and that does not exist."""
    absent: tuple[Path, ...] = ()
    """The paths of those files."""


@dataclass(frozen=True)
class CohortFiles:
    """The files of a cohort."""

    subjects: tuple[SubjectFiles, ...]
    """In the order of their ids."""
    warnings: tuple[str, ...]
    """Labels and masks without an image, and sessions and volumes that are left out."""
    similar: tuple[tuple[str, ...], ...]
    """Groups of ids that differ in case, Unicode form or a converter's suffix alone: one patient each, perhaps."""


@dataclass(frozen=True)
class _Match:
    """One file that fits a pattern."""

    path: Path
    session: str
    """Empty where the pattern names none."""


_Matches = dict[str, dict[str, list[_Match]]]
"""Kind -> subject -> files, one per session, in the order of the sessions."""


def find_subjects(
    root: str | Path, layout: Layout, *, rename: Callable[[str], str] = str, follow_links: bool = False
) -> CohortFiles:
    """Every subject that has an image, with label and mask where the layout names them; ids go through `rename`.

    Of several sessions the first by name is taken, with a warning: visits of one patient must not stand in two splits.
    DataError: no such folder, nothing in it that fits, two files for one subject, a name that is no text, a link that
    leads out of `root` unless `follow_links`. UsageError: a pattern without `{subject}`, or a `{session}` that the
    image's pattern has not.
    """
    root = Path(root)
    if not str(root).isprintable():
        raise DataError(f"data.root={str(root)!a}: the path holds bytes or signs that are no text; rename the folder")
    if not root.is_dir():
        raise DataError(
            f"data.root={root}: no such folder; give the folder that holds the cohort "
            "(the phantom's: `vesselgan make-phantom`)"
        )
    patterns = {kind: getattr(layout, kind) for kind in KINDS if getattr(layout, kind) is not None}
    _check_patterns(patterns)
    names = sorted(_list_files(root, max_depth=max(pattern.count("/") for pattern in patterns.values())))
    matches: _Matches = {kind: _match(root, names, pattern, kind) for kind, pattern in patterns.items()}
    if not follow_links:
        _check_links(root, matches)
    ids = sorted(matches["image"])
    if not ids:
        raise DataError(
            f"{root}: no file fits data.layout.image={patterns['image']!r}; "
            + (f"there are {', '.join(map(on_one_line, names[:3]))}, ..." if names else "the folder holds no files")
            + _hint(root, names, patterns["image"])
        )
    subjects = [_subject_files(root, subject, patterns, matches, rename) for subject in ids]
    warnings = [
        _skipped_sessions(subject, matches["image"][subject], rename)
        for subject in ids
        if len(matches["image"][subject]) > 1
    ]
    for kind in patterns:
        if surplus := sorted(set(matches[kind]) - set(ids)):
            warnings.append(f"{kind} without an image: {', '.join(map(rename, surplus))}")
    matched = {
        str(match.path.relative_to(root)) for of_kind in matches.values() for of in of_kind.values() for match in of
    }
    unmatched = {name for name in names if name.lower().endswith(VOLUME_ENDINGS)} - matched
    if unmatched:
        examples = ", ".join(map(on_one_line, sorted(unmatched)[:MAX_SHOWN])) + ", ..." * (len(unmatched) > MAX_SHOWN)
        shown = f": {examples}" if rename is str else ""  # file names could reveal pseudonymous ids
        warnings.append(f"{LEFT_OUT} ({len(unmatched)}){shown}")
    similar = tuple(tuple(map(rename, group)) for group in similar_ids(ids))
    return CohortFiles(tuple(sorted(subjects, key=lambda files: files.subject)), tuple(warnings), similar)


def similar_ids(ids: Iterable[str]) -> list[list[str]]:
    """Groups of several ids that differ in case, Unicode form or a converter's suffix alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for subject in ids:
        groups[_CONVERTER_SUFFIX.sub("", unicodedata.normalize("NFKC", subject).casefold())].append(subject)
    return [group for group in groups.values() if len(group) > 1]


def without_paths(text: str, files: SubjectFiles) -> str:
    """`text` with the paths of the subject's files replaced by their kind: a path may name a patient."""
    for path in files.absent:
        text = text.replace(f": {path}", "")
    for kind in KINDS:
        if (path := getattr(files, kind)) is not None:
            text = without_path(text, path, kind)
    return text


def hidden_files(files: SubjectFiles, *, is_hidden: bool) -> AbstractContextManager[None]:
    """Errors within, the system's too, name the subject's files by their kind if `is_hidden`."""
    shown = {path: kind for kind in KINDS if (path := getattr(files, kind)) is not None}
    return hidden_paths(shown) if is_hidden else nullcontext()


def _subject_files(
    root: Path, subject: str, patterns: dict[str, str], matches: _Matches, rename: Callable[[str], str]
) -> SubjectFiles:
    """The subject's files of its first session."""
    image = matches["image"][subject][0]
    chosen: dict[str, Path] = {}
    absent: dict[str, Path] = {}
    for kind, pattern in patterns.items():
        candidates = matches[kind].get(subject, [])
        if "{session}" in pattern:
            candidates = [match for match in candidates if match.session == image.session]
        if candidates:
            chosen[kind] = candidates[0].path
        else:
            absent[kind] = root / _example(pattern, subject, image.session)
    return SubjectFiles(
        subject=rename(subject),
        image=image.path,
        label=chosen.get("label"),
        mask=chosen.get("mask"),
        missing=tuple(
            f"{kind} is missing: {path}; supply it, or set data.layout.{kind}=null for the whole cohort"
            for kind, path in absent.items()
        ),
        absent=tuple(absent.values()),
    )


def has_files(root: str | Path, pattern: str) -> bool:
    """Whether any file below `root` fits the pattern."""
    expression = re.compile(_expression(pattern))
    return any(expression.fullmatch(name) for name in _list_files(Path(root), max_depth=pattern.count("/")))


def _hint(root: Path, names: Sequence[str], pattern: str) -> str:
    """The folder below `root` that would have been right."""
    expression = re.compile(f"(?P<folder>.+)/{_expression(pattern)}")
    fits = next((fit["folder"] for name in names if (fit := expression.fullmatch(name))), None)
    return "" if fits is None else f"; it fits below data.root={on_one_line(str(root / fits))}"


def _example(pattern: str, subject: str, session: str) -> str:
    """The path that was looked for; alternatives and `*` stay, optional parts are those of the session."""

    def keep(part: re.Match[str]) -> str:
        return part[1] if session and "{session}" in part[1] else ""

    return _OPTIONAL.sub(keep, pattern).replace("{subject}", subject).replace("{session}", session)


def _skipped_sessions(subject: str, sessions: list[_Match], rename: Callable[[str], str]) -> str:
    """A warning. Sessions are often dates, so they are not named beside a pseudonym."""
    if rename is not str:
        return f"{rename(subject)}: the first of {len(sessions)} sessions is used: one visit per subject"
    others = ", ".join(match.session for match in sessions[1:])
    return f"{subject}: session {sessions[0].session} is used, not {others}: one visit per subject"


def _check_patterns(patterns: dict[str, str]) -> None:
    for kind, pattern in patterns.items():
        setting = f"data.layout.{kind}={pattern!r}"
        if "{subject}" not in pattern or pattern.startswith("/") or ".." in pattern.split("/"):
            raise UsageError(f"{setting}: must be a path below data.root that contains {{subject}}")
        if any(sign in _OPTIONAL.sub("", pattern) for sign in "[]"):
            raise UsageError(f"{setting}: a part that may be absent stands in [...], one after the other")
        if "{session}" in pattern and "{session}" not in patterns["image"]:
            raise UsageError(f"{setting}: has a {{session}} that data.layout.image has not; write * for any one visit")


def _match(root: Path, names: Iterable[str], pattern: str, kind: str) -> dict[str, list[_Match]]:
    """Subject -> the files that fit the whole pattern, one per session, in the order of the sessions."""
    expression = re.compile(_expression(pattern))
    matches: dict[str, dict[str, _Match]] = {}
    for name in names:
        if (fit := expression.fullmatch(name)) is None:
            continue
        if not name.isprintable():
            raise DataError(f"{root}: the name {name!a} holds bytes or signs that are no text; rename it")
        subject, session = check_id(fit["subject"], root / name), fit.groupdict().get("session") or ""
        sessions = matches.setdefault(subject, {})
        if session in sessions:
            raise DataError(
                f"{root}: two files fit data.layout.{kind}={pattern!r} for subject {subject}: "
                f"{sessions[session].path.relative_to(root)} and {name}; make the pattern narrower or remove one"
            )
        sessions[session] = _Match(root / name, session)
    return {subject: [sessions[key] for key in sorted(sessions)] for subject, sessions in matches.items()}


def _check_links(root: Path, matches: _Matches) -> None:
    """DataError for a file that a link places outside `root`."""
    paths = (match.path for of_kind in matches.values() for of in of_kind.values() for match in of)
    check_inside(root, paths, "copy what it names, or data.prepare.follow_links=true reads it")


def _expression(pattern: str) -> str:
    """The pattern as a regular expression; a second {subject} must hold the same id as the first, {session} too.

    An id does not begin with a dot: it becomes a file's name later.
    """
    first = {"{subject}": r"(?P<subject>[^/.][^/]*)", "{session}": "(?P<session>[^/]+)"}
    repeated = {"{subject}": "(?P=subject)", "{session}": "(?P=session)"}
    tokens, signs = _TOKEN.split(pattern), {"*": "[^/]*", "[": "(?:", "]": ")?"}
    texts = []
    for i, token in enumerate(tokens):
        if token[:1] == "{" and "," in token:
            texts.append(f"(?:{'|'.join(map(re.escape, token[1:-1].split(',')))})")
        else:
            texts.append((signs | (repeated if token in tokens[:i] else first)).get(token, re.escape(token)))
    return "".join(texts)


def _list_files(root: Path, *, max_depth: int) -> Iterator[str]:
    """Names below `root` of everything that is not a folder, at any depth; links that lead nowhere included.

    Hidden names do not count: macOS leaves `._name` beside every file. Folders are entered through links too, each once
    on the way down. DataError for a folder that cannot be listed, unless it lies deeper than `max_depth`.
    """
    queue: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while queue:
        folder, parents = queue.pop()
        try:
            stat = os.stat(root / folder)
            entries = [] if (stat.st_dev, stat.st_ino) in parents else list(os.scandir(root / folder))
        except OSError as error:
            if folder.count("/") > max_depth:
                continue
            raise DataError(f"{root / folder}: cannot be listed ({error.strerror}); check its permissions") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                queue.append((f"{folder}{entry.name}/", (*parents, (stat.st_dev, stat.st_ino))))
            elif entry.is_symlink() or entry.is_file():
                yield folder + entry.name


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading the file raises
        return False
