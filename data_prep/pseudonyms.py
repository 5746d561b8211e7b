"""Names for subjects that only the holder of a key can link to patients: a keyed hash (HMAC-SHA256) of the id."""

import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path

from data_prep.layouts import CohortFiles, find_subjects
from data_prep.output import check_complete
from vesselgan.config.schema import PreparedData
from vesselgan.core.errors import UsageError

PREFIX, NUM_DIGITS = "anon-", 16
MIN_KEY_BYTES = 16
_PSEUDONYM = re.compile(rf"{PREFIX}[0-9a-f]{{{NUM_DIGITS}}}")
_DAY, _MONTH, _YEAR = "(0[1-9]|[12][0-9]|3[01])", "(0[1-9]|1[0-2])", "(19|20)[0-9]{2}"
_DATE = re.compile(
    "|".join(
        f"(?<![0-9]){'[-_.]?'.join(order)}(?![0-9])"
        for order in ((_YEAR, _MONTH, _DAY), (_DAY, _MONTH, _YEAR), (_MONTH, _DAY, _YEAR))
    )
)


def is_pseudonym(subject: str) -> bool:
    return _PSEUDONYM.fullmatch(subject) is not None


def renamer(data: PreparedData) -> Callable[[str], str]:
    """Id -> the name that is written for it: itself, or a pseudonym with data.prepare.pseudonymise=true.

    A pseudonym stays as it is, so that preprocessed folders that bear them and a split's CSV of ids go together.
    UsageError for a key file that is missing, too short, or inside a folder that may be passed on.
    """
    if not data.prepare.pseudonymise:
        return str
    key = _read_key(data)

    def rename(subject: str) -> str:
        if is_pseudonym(subject):
            return subject
        return (
            PREFIX + hmac.new(key, subject.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:NUM_DIGITS]
        )

    return rename


def files_of(data: PreparedData) -> CohortFiles:
    """The cohort's files, under the names that are written for its ids. The errors of `find_subjects` and `renamer`."""
    rename, follow_links = renamer(data), data.prepare.follow_links
    files = find_subjects(data.root, data.layout, rename=rename, follow_links=follow_links)
    check_complete(data.root, [subject.subject for subject in files.subjects], rename)
    return files


def identity_warnings(subject: str) -> list[str]:
    """A warning where an id has the form of a DICOM name (with ^) or holds a date."""
    if is_pseudonym(subject):
        return []
    if "^" in subject:
        kind = "a name"
    elif _DATE.search(subject) is not None:
        kind = "a date of birth"
    else:
        return []
    return [
        f"the id looks like {kind}, and ids stand in shards and results: data.prepare.pseudonymise=true replaces them"
    ]


def _read_key(data: PreparedData) -> bytes:
    setting = "data.prepare.key_file"
    how = "make one: (umask 077; head -c 32 /dev/urandom | base64 > KEYFILE), and keep it apart from the data"
    if data.prepare.key_file is None:
        raise UsageError(f"data.prepare.pseudonymise=true needs a secret: {setting}=KEYFILE; {how}")
    path = Path(data.prepare.key_file)
    for name, folder in (("data.cohort_dir", data.cohort_dir), ("data.root", data.root)):
        if path.resolve().is_relative_to(Path(folder).resolve()):
            raise UsageError(f"{setting}={path} lies inside {name}={folder}, which may be passed on; keep it elsewhere")
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"{setting}={path}: cannot be read ({error.strerror}); {how}") from error
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(f"{setting}={path}: {len(key)} bytes, at least {MIN_KEY_BYTES} are needed; {how}")
    return key
