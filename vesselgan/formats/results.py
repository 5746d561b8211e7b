"""Results of evaluations: one JSON file each, {"format_version", "job", "name", ...}. Their keys are their job's."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vesselgan.core.atomic_io import write_text
from vesselgan.core.errors import DataError, UsageError, reading
from vesselgan.core.names import check_inside

FORMAT_VERSION = 1
Result = dict[str, Any]


class Truth(NamedTuple):
    """What a segmentation was scored against: null hashes where the result does not say."""

    patient: str
    label_sha256: str | None
    mask_sha256: str | None


def truth_of(result: Result) -> dict[str, Truth]:
    """Of each subject of a segmentation result; only results of equal truths can be compared."""
    inputs, patients = result.get("inputs", {}), result.get("patients", {})
    subjects = {entry["subject"] for entry in result["subjects"]}
    return {s: Truth(patients.get(s, s), inputs.get(f"{s} label"), inputs.get(f"{s} mask")) for s in subjects}


class Results:
    """The results in a folder, sorted by file name; none if the folder does not exist.

    Raises DataError for a file that is not JSON, is of another format version, or a link that leads out of the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __iter__(self) -> Iterator[tuple[Path, Result]]:
        paths = sorted(self.folder.glob("*.json"))
        check_inside(self.folder, paths)
        for path in paths:
            result = read_result(path)
            if not isinstance(result.get("job"), str) or not isinstance(result.get("name"), str):
                raise DataError(f"{path}: names no job or has no name of its own; remove it and evaluate again")
            yield path, result


def read_result(path: str | Path) -> Result:
    """One result. Raises DataError for a file that is none, or is of another format version."""
    with reading(path, "remove it and evaluate again"):
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    version = result.get("format_version") if isinstance(result, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: results format {version!r}, this version reads {FORMAT_VERSION}; remove it and evaluate again"
        )
    content: Result = result
    return content


def check_replaceable(path: str | Path) -> None:
    """Raises UsageError unless a result may be written to `path`: it is new, or a result."""
    path = Path(path)
    try:
        if path.is_file() and isinstance(read_result(path).get("job"), str):
            return
    except DataError:
        pass
    if os.path.lexists(path) or not next(folder for folder in path.parents if folder.exists()).is_dir():
        raise UsageError(f"out={path}: is there and is no result, which alone may be written over; name another file")


def write_result(path: str | Path, result: Result) -> None:
    """Writes a result completely or not at all, with the version of its format."""
    write_text(path, json.dumps({"format_version": FORMAT_VERSION, **result}, indent=1, allow_nan=False) + "\n")
