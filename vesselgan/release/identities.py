"""What names a patient, a place or a person, so that a release can be searched for it."""

import getpass
import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vesselgan.formats.cohort import COHORT, Cohort
from vesselgan.formats.shards import MANIFEST, Manifest, ShardSet, read_manifest

MIN_CHARACTERS, MIN_DIGITS = 3, 5
"""Of a term that is searched for, and of one of digits alone: a shorter one stands in any text by chance."""
ENDINGS = (".gz", ".nii", ".img", ".hdr", ".mgz")
PREFIXES = re.compile(r"(?:sub|ses|subject|patient|pat)[-_]", re.IGNORECASE)


@dataclass(frozen=True)
class Identities:
    terms: dict[str, str]
    """What is searched for -> its kind, for a message."""
    origins: list[tuple[float, float, float]] = field(default_factory=list)
    """In mm, of the affines of real volumes."""
    skipped: list[str] = field(default_factory=list)
    """Terms that no search can tell from chance, or from the release's own words."""


def find_identities(cohort_dir: str, places: Iterable[str | Path], own_words: frozenset[str]) -> Identities:
    """Of the cohort's subjects, of all splits, of `places` and of who and what machine runs this.

    own_words: lower-case words of every release. Raises DataError for a damaged cohort or manifest.
    """
    terms: dict[str, str] = {}
    origins: set[tuple[float, float, float]] = set()
    manifests = [read_manifest(path.parent) for path in sorted(Path(cohort_dir).glob(f"shards/*/*/{MANIFEST}"))]
    cohort = Cohort.read(cohort_dir) if (Path(cohort_dir) / COHORT).is_file() else None
    for subjects in [manifest.subjects for manifest in manifests]:
        for name, entry in subjects.items():
            terms |= dict.fromkeys(_forms(name), "the id of a subject")
            terms |= dict.fromkeys(_forms(str(entry.get("patient") or name)), "the id of a patient")
            origins.add(_origin(entry.get("affine")))
    if cohort is not None:
        terms |= dict.fromkeys([form for name in cohort.subjects for form in _forms(name)], "the id of a subject")
        patients = {name: patient for manifest in manifests for name, patient in subjects_of(manifest).items()}
        patients |= {name: s.patient for name, s in cohort.subjects.items() if s.patient is not None}
        terms = {form: "the id of a patient" for patient in patients.values() for form in _forms(patient)} | terms
        kind = "the original of a pseudonym" if cohort.is_pseudonymous else "the name of a source file"
        terms |= {name: kind for name in _file_names(cohort, patients) if name not in terms}
        places = [*places, *{subject.image.parent for subject in cohort.subjects.values()}]
    terms |= dict.fromkeys([str(Path(place).resolve()) for place in places], "a path")
    terms |= dict.fromkeys(_users(), "a user's name")
    host = socket.gethostname()
    terms |= dict.fromkeys({host, host.split(".")[0]}, "a host's name")
    skipped = sorted(term for term in terms if _is_ordinary(term, own_words))
    kept = {term: kind for term, kind in terms.items() if term not in skipped}
    return Identities(kept, sorted(origin for origin in origins if _is_telling(origin)), skipped)


def _forms(name: str) -> Iterator[str]:
    """An id as it stands, and without a prefix such as `sub-`."""
    yield name
    bare = PREFIXES.sub("", name)
    if bare != name and (len(bare) >= MIN_DIGITS or not bare.isdigit()):
        yield bare


def _file_names(cohort: Cohort, patients: dict[str, str]) -> Iterator[str]:
    """Parts of the paths of a patient's volumes that no other has, or at most half of all have.

    patients: of subjects, where they are known.
    """
    parts: dict[str, set[str]] = {}
    for name, subject in cohort.subjects.items():
        paths = [path for path in (subject.image, subject.label, subject.mask) if path is not None]
        forms = {form for path in paths for part in path.parts for form in _of_part(part)}
        parts.setdefault(patients.get(name, name), set()).update(forms)
    counts = Counter(part for of_patient in parts.values() for part in of_patient)
    yield from sorted(part for part, count in counts.items() if count <= max(1, len(parts) / 2))


def _of_part(part: str) -> Iterator[str]:
    """A file's name without its ending, and the words in it."""
    while part.endswith(ENDINGS):
        part = part[: part.rindex(".")]
    yield part
    yield from re.split(r"[\W_]+", part)


def _users() -> set[str]:
    names = {Path.home().name}
    try:
        names.add(getpass.getuser())
    except (OSError, KeyError):
        pass  # a user id without a name
    return names


def _is_ordinary(term: str, own_words: frozenset[str]) -> bool:
    if len(term) < MIN_CHARACTERS or term.casefold() in own_words:
        return True
    return term.isdigit() and len(term) < MIN_DIGITS


def _origin(affine: object) -> tuple[float, float, float]:
    try:
        x, y, z = (float(value) for value in np.asarray(affine, dtype=float)[:3, 3])
    except (TypeError, ValueError, IndexError):
        return 0.0, 0.0, 0.0
    return round(x, 3), round(y, 3), round(z, 3)


def _is_telling(origin: tuple[float, float, float]) -> bool:
    """Whether three numbers can be recognised: not whole numbers of one digit, which stand everywhere."""
    return any(value != round(value) or abs(value) >= 10 for value in origin)


def subjects_of(shards: ShardSet | Manifest) -> dict[str, str]:
    """Subject -> patient."""
    return {name: str(entry.get("patient") or name) for name, entry in shards.subjects.items()}
