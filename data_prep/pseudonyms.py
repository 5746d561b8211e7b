"""Names for subjects that only the holder of a key can link to patients: a keyed hash (HMAC-SHA256) of the id."""

import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path

from vesselgan.config.schema import PreparedData
from vesselgan.core.errors import UsageError

PREFIX, DIGITS = "anon-", 16
MIN_KEY_BYTES = 16
# Words that ids of cohorts are made of. Two others beside each other are taken for a name, and one that is written so.
HARMLESS = set("anon angio brain case control data guys head hh id image iop ixi mr mra mri pat patient".split())
HARMLESS |= set("pegasus phantom proband run scan ses session site sub subj subject test tof topcow train".split())
HARMLESS |= {"visit", "vol", "volume", "volunteer"}
_DAY, _MONTH, _YEAR = "(0[1-9]|[12][0-9]|3[01])", "(0[1-9]|1[0-2])", "(19|20)[0-9]{2}"
_DATE = re.compile(
    "|".join(
        f"(?<![0-9]){'[-_.]?'.join(parts)}(?![0-9])"
        for parts in ((_YEAR, _MONTH, _DAY), (_DAY, _MONTH, _YEAR), (_MONTH, _DAY, _YEAR))
    )
)
_IS_PSEUDONYM = re.compile(rf"{PREFIX}[0-9a-f]{{{DIGITS}}}")


def renamer(data: PreparedData) -> Callable[[str], str]:
    """Id -> the name that is written for it: itself, or a pseudonym with data.prepare.pseudonymise=true.

    A pseudonym stays as it is, so that preprocessed folders that bear them and a split's CSV of ids go together.
    UsageError for a key file that is missing, too short, or inside a folder that may be passed on.
    """
    if not data.prepare.pseudonymise:
        return str
    key = _read_key(data)

    def rename(subject: str) -> str:
        if _IS_PSEUDONYM.fullmatch(subject):
            return subject
        return PREFIX + hmac.new(key, subject.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:DIGITS]

    return rename


def suspicion(subject: str) -> list[str]:
    """A warning where an id may hold a patient's name or date of birth; none is sure, so it is no error."""
    words = [word for word in re.findall(r"[^\W\d_]{2,}", subject) if word.lower() not in HARMLESS]
    is_written_so = any(len(word) >= 4 and word.istitle() for word in words)  # `Mueller`
    has_name = "^" in subject or len(words) >= 2 or is_written_so
    has_date = _DATE.search(subject) is not None
    if _IS_PSEUDONYM.fullmatch(subject) or not (has_name or has_date):
        return []
    what = "a name" if has_name else "a date of birth"
    return [
        f"the id looks like {what}, and ids stand in shards and results: data.prepare.pseudonymise=true replaces them"
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
