"""Where output may go, and JSON files of it."""

import json
from pathlib import Path
from typing import Any

import data_prep
from vesselgan.core import atomic_io
from vesselgan.core.errors import ResourceError, UsageError

SOURCE_FOLDERS = ("vesselgan", "data_prep", "launch", "configs", "slurm", "tests")


def check_output_folder(folder: str | Path, setting: str, root: str | Path | None = None) -> None:
    """UsageError when `folder`, the value of `setting`, is data.root or lies inside the program's folders."""
    resolved, checkout = Path(folder).resolve(), Path(data_prep.__file__).resolve().parents[1]
    if root is not None and resolved == Path(root).resolve():
        raise UsageError(f"{setting}={folder} is data.root: the output needs a folder of its own")
    for name in SOURCE_FOLDERS:
        if resolved.is_relative_to(checkout / name):
            raise UsageError(f"{setting}={folder} lies inside the program's own {name}/; choose another")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Complete or not at all; ResourceError when it cannot be written."""
    try:
        atomic_io.write_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); make room and start again") from error
