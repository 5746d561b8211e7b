"""The patient of each subject: `patient` in every manifest, by which privacy per patient groups the patches.

The patient is what an id holds before its visit (sub-01_ses-2, PAT01_visit2), else the id itself: the layout's
`{subject}`. A column `patient` in data.prepare.split.csv overrides it. Names that differ in case or Unicode form alone
are one patient, under the first of them. Patients are hashed as ids are. For an id that
is a pseudonym already, as in a preprocessed folder, there is only that column.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping

from data_prep.layouts import find_subjects
from data_prep.pseudonyms import is_pseudonym, renamer
from data_prep.splits import read_rows
from vesselgan.config.schema import PreparedData
from vesselgan.core.errors import DataError
from vesselgan.core.names import check_id

_BIDS = re.compile(r"sub-[0-9A-Za-z]+")
_VISIT = re.compile(
    r"[-_](ses-[0-9a-z]+|(ses|session|visit|timepoint|tp|followup|fu)[-_]?\d+)([-_].*)?$", re.IGNORECASE
)


def patients_of(data: PreparedData) -> dict[str, str | None]:
    """Subject, as it is called in shards -> patient; None where it is unknown. DataError for a subject of two."""
    rename = renamer(data)
    patients: dict[str, str | None] = {}
    first: dict[str, str] = {}
    for files in find_subjects(data.root, data.layout, follow_links=data.prepare.follow_links).subjects:
        subject = files.subject
        patients[rename(subject)] = None if is_pseudonym(subject) else _without_visit(subject)
    return {
        subject: None if patient is None else rename(first.setdefault(_key(patient), patient))
        for subject, patient in (patients | named_patients(data)).items()
    }


def in_several_splits(patients: Mapping[str, str | None], assigned: Mapping[str, str]) -> list[str]:
    """One message for each patient whose subjects stand in several splits: that leaks training data into the test."""
    subjects_of: dict[str, list[str]] = defaultdict(list)
    for subject in assigned:
        if (patient := patients.get(subject)) is not None:
            subjects_of[patient].append(subject)
    return [
        f"{patient} stands in {' and '.join(sorted({assigned[subject] for subject in subjects}))} "
        f"({', '.join(subjects)} are one patient); give all visits one split in data.prepare.split.csv, or take visits "
        "out"
        for patient, subjects in subjects_of.items()
        if len({assigned[subject] for subject in subjects}) > 1
    ]


def _without_visit(subject: str) -> str:
    if (bids := _BIDS.match(subject)) is not None:
        return bids.group()
    return _VISIT.sub("", subject) or subject


def _key(patient: str) -> str:
    """The same for names that differ in case or Unicode form alone."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", patient).casefold())


def named_patients(data: PreparedData) -> dict[str, str]:
    """Subject, as it is called in shards -> patient as written, from the rows of the CSV that fill the column."""
    path, rename = data.prepare.split.csv, renamer(data)
    if path is None:
        return {}
    patients: dict[str, str] = {}
    for row in read_rows(path):
        if not (patient := row.get("patient")):
            continue
        subject = rename(row["subject"])
        if _key(patients.setdefault(subject, check_id(patient, path))) != _key(patient):
            raise DataError(f"{path}: {subject} has two patients; name one")
    return patients
