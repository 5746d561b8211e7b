"""Where output may go, JSON files of it, and whether preprocessed volumes are complete."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import data_prep
from vesselgan.core import atomic_io
from vesselgan.core.errors import DataError, ResourceError, UsageError, reading

PREPROCESSED = "preprocess.json"
"""In a folder of preprocessed volumes: {"settings", "subjects": [id], "set_aside": [id]}."""
SOURCE_FOLDERS = ("vesselgan", "data_prep", "launch", "configs", "slurm", "tests")


def check_output_folder(folder: str | Path, setting: str, root: str | Path | None = None) -> None:
    """UsageError when `folder`, the value of `setting`, is data.root or lies inside the program's folders."""
    resolved, checkout = Path(folder).resolve(), Path(data_prep.__file__).resolve().parents[1]
    if root is not None and resolved == Path(root).resolve():
        raise UsageError(f"{setting}={folder} is data.root: the output needs a folder of its own")
    for name in SOURCE_FOLDERS:
        if resolved.is_relative_to(checkout / name):
            raise UsageError(f"{setting}={folder} lies inside the program's own {name}/; choose another")


def check_complete(root: str | Path, subjects: Collection[str], rename: Callable[[str], str]) -> None:
    """DataError where `root` is a folder of preprocessed volumes that lacks some, as a killed run leaves it."""
    path, remedy = Path(root) / PREPROCESSED, "start `vesselgan preprocess` again with the settings of before"
    if not path.is_file():
        return
    with reading(path, remedy):
        content = json.loads(path.read_text(encoding="utf-8"))
        expected = {rename(name) for name in [*content["subjects"]]} - {rename(name) for name in content["set_aside"]}
    if missing := sorted(expected - set(subjects)):
        raise DataError(
            f"{root}: preprocessing has not finished: {', '.join(missing)} missing; {remedy} "
            "(data.prepare.quarantine=true sets aside what it cannot use)"
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Complete or not at all; ResourceError when it cannot be written."""
    try:
        atomic_io.write_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); make room and start again") from error
