"""Whose a cohort's subjects are: `patient` in every manifest, by which privacy per patient groups the patches.

The patient is what an id holds before its visit (sub-01_ses-2, PAT01_visit2), else the id itself: the layout's
`{subject}`. Where ids say it otherwise, a column `patient` in data.prepare.split.csv does. With pseudonyms it is hashed
as an id is. Of an id that was a pseudonym before, as in a preprocessed folder, only that column can tell.
"""

import csv
import re
from collections.abc import Callable, Mapping

from data_prep import pseudonyms
from data_prep.layouts import find_subjects
from vesselgan.config.schema import PreparedData
from vesselgan.core.errors import DataError

_BIDS = re.compile(r"sub-[0-9A-Za-z]+")
_VISIT = re.compile(
    r"[-_](ses-[0-9a-z]+|(ses|session|visit|timepoint|tp|followup|fu)[-_]?\d+)([-_].*)?$", re.IGNORECASE
)
_PSEUDONYM = re.compile(rf"{pseudonyms.PREFIX}[0-9a-f]{{{pseudonyms.DIGITS}}}")


def patients_of(data: PreparedData) -> dict[str, str | None]:
    """Subject, as it is called in shards -> patient; None where nobody can tell. DataError for a subject of two."""
    rename = pseudonyms.renamer(data)
    ids = [files.subject for files in find_subjects(data.root, data.layout).subjects]
    by_id = {rename(subject): rename(_without_visit(subject)) for subject in ids if not _PSEUDONYM.fullmatch(subject)}
    return dict.fromkeys(map(rename, ids)) | by_id | _named(data.prepare.split.csv, rename)


def divided(patients: Mapping[str, str | None], assigned: Mapping[str, str]) -> list[str]:
    """Patients whose subjects stand in several splits, in words: their own scans would tell how well others' do."""
    visits: dict[str, list[str]] = {}
    for subject in assigned:
        if (patient := patients.get(subject)) is not None:
            visits.setdefault(patient, []).append(subject)
    return [
        f"{patient} stands in {' and '.join(sorted({assigned[name] for name in names}))} ({', '.join(names)} are one "
        "patient); give all visits one split in data.prepare.split.csv, or take visits out"
        for patient, names in visits.items()
        if len({assigned[name] for name in names}) > 1
    ]


def _without_visit(subject: str) -> str:
    if (bids := _BIDS.match(subject)) is not None:
        return bids.group()
    return _VISIT.sub("", subject) or subject


def _named(path: str | None, rename: Callable[[str], str]) -> dict[str, str]:
    """Subject -> patient from the CSV's column, where it has one and a row fills it; `splits` has read the rest."""
    if path is None:
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}  # `splits` refuses it, and says why
    named: dict[str, str] = {}
    for row in rows:
        if not (patient := (row.get("patient") or "").strip()):
            continue
        subject = rename((row.get("subject") or "").strip())
        if named.setdefault(subject, rename(patient)) != rename(patient):
            raise DataError(f"{path}: {subject} has two patients; name one")
    return named
