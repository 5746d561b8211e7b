"""Where output may not go: among the inputs, or into the program's own folders."""

from pathlib import Path

import data_prep
from vesselgan.core.errors import UsageError

SOURCE_FOLDERS = ("vesselgan", "data_prep", "launch", "configs", "slurm", "tests")


def refuse(folder: str | Path, setting: str, root: str | Path) -> None:
    """UsageError when `folder`, the value of `setting`, is data.root or lies inside the program's folders."""
    there, checkout = Path(folder).resolve(), Path(data_prep.__file__).resolve().parents[1]
    if there == Path(root).resolve():
        raise UsageError(f"{setting}={folder} is data.root: the output needs a folder of its own")
    for name in SOURCE_FOLDERS:
        if there.is_relative_to(checkout / name):
            raise UsageError(f"{setting}={folder} lies inside the program's own {name}/; choose another")
