"""Brain masks by outside tools (FSL bet, deepbet) or given ones.

deepbet runs as a process of its own: it needs torch, which data preparation does not load.
"""

# X Y Z voxels of the canonical grid

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.formats import volumes

TIMEOUT_S = 1800.0
TOOLS = {"given": "data.layout.mask", "bet": "FSL bet", "deepbet": "deepbet"}
_DEEPBET = "import sys; from deepbet import run_bet; run_bet([sys.argv[1]], mask_paths=[sys.argv[2]], no_gpu=True)"


def choose_tool(mask: str, *, is_given: bool) -> str:
    """`given`, `bet`, `deepbet` or `none` for the whole cohort. ResourceError when the tool is not installed."""
    if mask == "none":
        return mask
    is_available = {
        "given": is_given,
        "bet": shutil.which("bet") is not None,
        "deepbet": importlib.util.find_spec("deepbet") is not None,
    }
    if mask == "auto":
        available = [tool for tool in TOOLS if is_available[tool]]
        if not available:
            raise ResourceError(
                "no brain mask can be made: data.layout.mask is null, FSL's bet is not on PATH and deepbet is not "
                "installed; name given masks in data.layout.mask, install FSL or deepbet (pip install "
                "'vesselgan[preprocess]'), or go without intracranial scores: preprocess.mask=none"
            )
        return available[0]
    if mask == "given" and not is_given:
        raise UsageError("preprocess.mask=given, but data.layout.mask is null; name the masks or let bet make them")
    if not is_available[mask]:
        how = "install FSL and put bet on PATH" if mask == "bet" else "pip install 'vesselgan[preprocess]'"
        raise ResourceError(f"preprocess.mask={mask}: {TOOLS[mask]} is not there; {how}, or choose another mask")
    return mask


def describe_tool(tool: str, *, bet_fraction: float) -> dict[str, Any]:
    """Tool, version and parameters, for the provenance; the same for every subject of a run."""
    if tool == "bet":
        return {"tool": "FSL bet", "version": _fsl_version(), "parameters": {"f": bet_fraction}}
    if tool == "deepbet":
        return {"tool": "deepbet", "version": version("deepbet"), "parameters": {"threshold": 0.5, "n_dilate": 0}}
    return {"tool": "given", "version": None, "parameters": {}}


def run_tool(tool: str, image: Path, scratch: Path, *, bet_fraction: float) -> np.ndarray:
    """The mask of a NIfTI image, uint8 on its canonical grid; temporary files go to `scratch`.

    DataError when the tool fails, or when its mask is empty, everything, or on another grid.
    """
    if tool == "bet":
        target = scratch / "bet_mask.nii.gz"
        command = [str(shutil.which("bet")), str(image), str(scratch / "bet"), "-f", f"{bet_fraction:g}", "-m", "-n"]
    else:
        target = scratch / "deepbet_mask.nii.gz"
        command = [sys.executable, "-c", _DEEPBET, str(image), str(target)]
    _run(command, image, TOOLS[tool])
    if not target.is_file():
        raise DataError(f"{image}: {TOOLS[tool]} wrote no mask; look at the image, or take the subject out")
    mask = volumes.read_mask(target)
    difference = volumes.grid_difference(volumes.read_header(image), mask.header)
    if difference is not None:
        raise DataError(f"{image}: the mask of {TOOLS[tool]} is not on its grid: {difference}")
    check_mask(mask.data_XYZ, f"{image}: the mask of {TOOLS[tool]}")
    return mask.data_XYZ


def check_mask(mask_XYZ: np.ndarray, name: str) -> None:
    """DataError for a mask that holds nothing or everything."""
    num_inside = int(np.count_nonzero(mask_XYZ))
    if num_inside in (0, mask_XYZ.size):
        share = "no voxel" if num_inside == 0 else "every voxel"
        raise DataError(f"{name} holds {share}; give a mask (data.layout.mask), or take the subject out")


def _run(command: Sequence[str], image: Path, tool: str) -> None:
    environment = {**os.environ, "FSLOUTPUTTYPE": "NIFTI_GZ"}
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{image}: {tool} did not end in {TIMEOUT_S:g} s; look at the image") from error
    except OSError as error:
        raise ResourceError(f"{tool} cannot be started ({error.strerror}): {command[0]}") from error
    if process.returncode != 0:
        last_line = (process.stderr.strip() or process.stdout.strip() or "nothing").splitlines()[-1]
        raise DataError(f"{image}: {tool} failed (exit {process.returncode}), saying: {last_line}")


def _fsl_version() -> str:
    try:
        return (Path(os.environ["FSLDIR"]) / "etc" / "fslversion").read_text(encoding="utf-8").strip()
    except (KeyError, OSError):
        return "unknown"
