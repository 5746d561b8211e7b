"""Write the phantom cohort: seeded full-head angiograms with vessel label and brain mask, as ordinary NIfTI; over MPI.

    vesselgan make-phantom
    mpiexec -n 2 python -m mpi4py -m vesselgan make-phantom
    vesselgan make-phantom preset=paper
    vesselgan make-phantom preset=other
    vesselgan make-phantom preset=spanning
    vesselgan make-phantom phantom.num_subjects=20 phantom.seed=7 work_dir=work/more

Writes data.root/sub-01/{image,vessel,brain_mask}.nii.gz and so on, and data.root/phantom.json, which holds the
settings. A subject is written completely or not at all, so the same command resumes a stopped run; more subjects may be
asked for later. Same settings, same bytes, whatever the number of ranks. A folder that holds anything else is left
alone.
"""

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import lock, mpi
from data_prep.mpi import MpiWorld
from data_prep.output import check_output_folder
from data_prep.phantom import PHANTOM_VERSION, Scanner, generate_subject
from vesselgan.config.compose import parse
from vesselgan.config.schema import Layout, MakePhantom, Phantom
from vesselgan.core import atomic_io
from vesselgan.core.console import differences, log
from vesselgan.core.errors import DataError, ResourceError, UsageError, reading
from vesselgan.formats import volumes
from vesselgan.formats.cohort import PHANTOM_SETTINGS
from vesselgan.formats.nifti import format_sizes

LAYOUT = Layout("{subject}/image.nii.gz", "{subject}/vessel.nii.gz", "{subject}/brain_mask.nii.gz")
NAMES = ("image.nii.gz", "vessel.nii.gz", "brain_mask.nii.gz")


def make_cohort(config: MakePhantom, world: MpiWorld) -> None:
    """Write the subjects that are missing. UsageError, DataError or ResourceError, on all ranks together."""
    root, phantom = Path(config.data.root), config.phantom
    mpi.run_on_rank0(world, lambda: check_root(config))
    with lock.exclusive(world, root / ".make_phantom.lock"):
        started_s = time.monotonic()
        missing = mpi.run_on_rank0(world, lambda: record_settings(config))
        mpi.map_items(world, missing, lambda n: write_subject(root, phantom, n), description="making phantoms")
        shape, spacing = format_sizes(phantom.shape), format_sizes(phantom.spacing_mm)
        text = f"{phantom.num_subjects} phantom subjects of {shape} voxels of {spacing} mm"
        seconds = time.monotonic() - started_s
        log.info(f"{root}: {text} ({len(missing)} made now, {seconds:.0f} s)")


def subject_id(number: int) -> str:
    """`sub-01` for the first subject."""
    return f"sub-{number:02d}"


def subject_seed(seed: int, number: int) -> int:
    """Independent of the size of the cohort."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def check_root(config: MakePhantom) -> None:
    """Refuse settings and folders that do not fit; changes nothing.

    UsageError: a layout other than the phantom's, the program's own folders, a phantom of other settings. DataError: a
    folder that holds something else, a subject that lacks a file.
    """
    root = Path(config.data.root)
    if config.data.layout != LAYOUT:
        raise UsageError(
            f"data={config.data.name}: the phantom is written as {LAYOUT.image}, {LAYOUT.label}, {LAYOUT.mask}; "
            "use data=phantom, or data=phantom_paper with preset=paper, and data.root=FOLDER to put it elsewhere"
        )
    check_output_folder(root, "data.root")
    if root.exists() and not root.is_dir():
        raise DataError(f"data.root={root} is a file; give a folder")
    names = {name for name in (os.listdir(root) if root.exists() else []) if not name.startswith(".")}
    names -= {PHANTOM_SETTINGS + atomic_io.PARTIAL}
    if PHANTOM_SETTINGS in names:
        _check_settings(root / PHANTOM_SETTINGS, config.phantom)
        _check_subjects(root, config.phantom, names - {PHANTOM_SETTINGS})
    elif names:
        raise DataError(
            f"{root} holds {', '.join(sorted(names)[:3])} and no {PHANTOM_SETTINGS}: it is no phantom cohort and "
            "stays as it is; give data.root=FOLDER or work_dir=FOLDER for a new one"
        )


def record_settings(config: MakePhantom) -> list[int]:
    """Check again under the lock, write the settings and return the numbers of the subjects to make."""
    check_root(config)
    root = Path(config.data.root)
    try:
        atomic_io.write_text(root / PHANTOM_SETTINGS, json.dumps(_settings(config.phantom), indent=2) + "\n")
    except OSError as error:
        raise ResourceError(f"{root / PHANTOM_SETTINGS}: {atomic_io.describe(error)}") from error
    return [n for n in range(1, config.phantom.num_subjects + 1) if not (root / subject_id(n)).is_dir()]


def write_subject(root: Path, phantom: Phantom, number: int) -> None:
    (x, y, z), (spacing_x, spacing_y, spacing_z) = phantom.shape, phantom.spacing_mm
    noise_low, noise_high = phantom.noise
    scanner = Scanner(phantom.slab_mm, phantom.bias, (noise_low, noise_high), phantom.point_spread_voxels)
    seed = subject_seed(phantom.seed, number)
    image, vessel, mask, affine = generate_subject(
        seed, (x, y, z), (spacing_x, spacing_y, spacing_z), scanner, phantom.trees
    )
    folder = root / subject_id(number)
    partial = root / f".{folder.name}{atomic_io.PARTIAL}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, array in zip(NAMES, (image, vessel, mask), strict=True):
            volumes.write_volume(partial / name, array, affine)
        os.rename(partial, folder)
    except OSError as error:
        raise ResourceError(f"{folder}: {atomic_io.describe(error)}") from error


def _settings(phantom: Phantom) -> dict[str, Any]:
    return {"phantom_version": PHANTOM_VERSION, **asdict(phantom)}


def _check_settings(path: Path, phantom: Phantom) -> None:
    """UsageError unless the cohort has these settings; it may grow. DataError where they cannot be read."""
    settings = _settings(phantom)
    with reading(path, f"remove {path.parent} and run again"):
        content = json.loads(path.read_text())
        stored = {key: content[key] for key in settings}
    if stored["num_subjects"] < settings["num_subjects"]:
        stored["num_subjects"] = settings["num_subjects"]
    if changed := differences(stored, settings):
        raise UsageError(
            f"{path.parent} holds a phantom cohort of other settings ({'; '.join(changed)}) and stays as it is; "
            "give data.root=FOLDER or work_dir=FOLDER for a new one, or remove that folder"
        )


def _check_subjects(root: Path, phantom: Phantom, names: set[str]) -> None:
    """DataError for a name that is no subject of this cohort, or a subject that lacks a file."""
    ids = {subject_id(number) for number in range(1, phantom.num_subjects + 1)}
    for name in sorted(names):
        if name not in ids:
            raise DataError(f"{root / name} is not of this phantom cohort; move it away and run again")
        absent = [file for file in NAMES if not (root / name / file).is_file()]
        if absent:
            raise DataError(f"{root / name} lacks {', '.join(absent)}; remove that folder and run again")


def main() -> None:
    """Entry of `vesselgan make-phantom`."""
    mpi.run(lambda: parse("make_phantom", __doc__).config, make_cohort)


if __name__ == "__main__":
    main()
