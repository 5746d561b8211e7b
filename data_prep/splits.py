"""Divide a cohort by subject: drawn from a seed or read from a CSV; nobody stands in two splits."""

import csv
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vesselgan.config.schema import Split
from vesselgan.core.console import counted
from vesselgan.core.errors import DataError, UsageError, reading
from vesselgan.core.names import check_id
from vesselgan.formats.cohort import SPLITS


def assign(
    usable: Sequence[str], split: Split, *, known: Sequence[str] | None = None, rename: Callable[[str], str] = str
) -> dict[str, str]:
    """Subject -> split, in the order of the ids. `known`: every subject of the cohort, those set aside included.

    `rename`: what a CSV's ids are called in the cohort.
    """
    if len(set(usable)) != len(usable):
        raise DataError(f"subjects named twice: {', '.join(sorted({s for s in usable if usable.count(s) > 1}))}")
    if split.csv is None:
        return draw(usable, split)
    return read_csv(split.csv, usable, known=known or usable, rename=rename)


def draw(subjects: Sequence[str], split: Split) -> dict[str, str]:
    """Draw test, then validation, then training subjects in an order that depends on the seed alone.

    DataError for too few subjects; UsageError where the numbers leave some without a split.
    """
    sizes = {"test": split.test, "validation": split.validation, "train": split.train}
    given = {name: size for name, size in sizes.items() if size is not None}
    unset = [name for name, size in sizes.items() if size is None]
    if len(unset) > 1:
        raise UsageError("data.prepare.split: train and test are both null; only one can take all that is left")
    remaining = len(subjects) - sum(given.values())
    shown = " and ".join(f"split.{name}={size}" for name, size in given.items())
    if remaining < 0 or (remaining == 0 and unset):
        raise DataError(_too_few(len(subjects), shown, sum(given.values()) + len(unset), unset))
    if remaining > 0 and not unset:
        raise UsageError(
            f"data.prepare.split: {shown} leave {remaining} of {len(subjects)} subjects without a split; say "
            "data.prepare.split.train=null (or split.test=null) for all that remain, or raise one of the numbers"
        )
    order = np.random.default_rng(split.seed).permutation(len(subjects))
    shuffled = [sorted(subjects)[i] for i in order]
    names = [name for name in sizes for _ in range(given.get(name, remaining))]
    drawn = dict(zip(shuffled, names, strict=True))
    return {subject: drawn[subject] for subject in sorted(subjects)}


def _too_few(num_subjects: int, shown: str, num_needed: int, unset: list[str]) -> str:
    """The message, with numbers that work for so many subjects."""
    who = counted(num_subjects, "subject")
    rest = f"any for {unset[0]}" if unset else "no more"
    remedy = "lower the numbers of data.prepare.split"
    if unset == ["train"]:
        size = 0 if num_subjects < 3 else max(1, round(num_subjects / 6))  # about the paper's 12 and 13 of 72
        for_all = "" if size else ", all for training"
        remedy = (
            f"what works for {who}: data.prepare.split.validation={size} data.prepare.split.test={size}{for_all}; or, "
            "for a cohort that only tests, data.prepare.split.train=0 data.prepare.split.validation=0 "
            "data.prepare.split.test=null"
        )
    return f"{who} cannot give {shown} and {rest}: at least {num_needed} are needed; {remedy}"


def read_csv(
    path: str | Path, usable: Sequence[str], *, known: Sequence[str], rename: Callable[[str], str] = str
) -> dict[str, str]:
    """Subject -> split from the columns subject,split. Every usable subject must be named, once, and no unknown one."""
    splits_of: dict[str, set[str]] = defaultdict(set)
    for row in read_rows(path):
        splits_of[rename(check_id(row["subject"], path))].add(row["split"])
    faults = [
        f"{subject} stands in {' and '.join(sorted(splits))}"
        for subject, splits in splits_of.items()
        if len(splits) > 1
    ]
    faults += [
        f"{subject} has the split {name!r}, which is none of {', '.join(SPLITS)}"
        for subject, splits in splits_of.items()
        for name in splits - set(SPLITS)
    ]
    if unknown := sorted(set(splits_of) - set(known)):
        faults.append(f"not in the cohort: {', '.join(map(_shown, unknown))}")
    if unnamed := sorted(set(usable) - set(splits_of)):
        faults.append(f"in the cohort and not in the file: {', '.join(map(_shown, unnamed))}")
    if faults:
        raise DataError(f"{path}: {'; '.join(faults)}")
    return {subject: next(iter(splits_of[subject])) for subject in sorted(usable)}


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a split's CSV: subject, split and, where the file has it, patient. DataError for any other column."""
    with reading(path, "data.prepare.split.csv must name a CSV file"):
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                columns, *rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row] or [[]]
        except csv.Error as error:
            raise ValueError(str(error)) from error
    if not rows or sorted(columns) not in (["split", "subject"], ["patient", "split", "subject"]):
        raise DataError(
            f"{path}: its first line of {len(rows) + 1} is {','.join(columns)!a}; it needs `subject,split`, each once, "
            "and a line for every subject; `patient` may follow, and nothing else"
        )
    if long := [row for row in rows if len(row) > len(columns)]:
        raise DataError(f"{path}: the line {','.join(long[0])[:80]!a} has more values than the first line has columns")
    return [dict(itertools.zip_longest(columns, row, fillvalue="")) for row in rows]


def _shown(name: str) -> str:
    """With the code points of letters that look alike in several Unicode forms."""
    return name if name.isascii() else f"{name} ({name!a})"


def duplicates(sha256_of_image: Mapping[str, str]) -> dict[str, str]:
    """Subject -> the earlier-named subject whose image holds the very same voxels: one patient under two names."""
    first: dict[str, str] = {}
    return {
        subject: first[digest]
        for subject, digest in sorted(sha256_of_image.items())
        if first.setdefault(digest, subject) != subject
    }
