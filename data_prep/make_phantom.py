"""Write the phantom cohort: seeded full-head angiograms with vessel label and brain mask, as ordinary NIfTI; over MPI.

    python -m data_prep.make_phantom
    mpiexec -n 2 python -m mpi4py -m data_prep.make_phantom
    python -m data_prep.make_phantom preset=paper
    python -m data_prep.make_phantom preset=other
    python -m data_prep.make_phantom phantom.num_subjects=20 phantom.seed=7 work_dir=work/more

Writes data.root/sub-01/{image,vessel,brain_mask}.nii.gz and so on, and data.root/phantom.json, which says how they were
made. A subject appears whole or not at all, so a stopped start goes on where it was; more subjects may be asked for
later. Same settings, same bytes, whatever the number of ranks. A folder that holds anything else is never touched.
"""

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

import data_prep
from data_prep import lock, mpi
from data_prep.mpi import Progress, World
from data_prep.paths import SOURCE_FOLDERS
from data_prep.phantom import RECIPE, Scanner, generate_subject
from vesselgan.config.compose import parse
from vesselgan.config.schema import Layout, MakePhantom, Phantom
from vesselgan.core import atomic_io
from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.formats import volumes

SETTINGS_FILE = "phantom.json"
LAYOUT = Layout("{subject}/image.nii.gz", "{subject}/vessel.nii.gz", "{subject}/brain_mask.nii.gz")
NAMES = ("image.nii.gz", "vessel.nii.gz", "brain_mask.nii.gz")


def make_cohort(config: MakePhantom, here: World) -> None:
    """Write the subjects that are missing. UsageError, DataError or ResourceError, on all ranks together."""
    root, phantom = Path(config.data.root), config.phantom
    mpi.run_on_rank0(here, lambda: check_place(config))
    with lock.exclusive(here, root / ".make_phantom.lock"):
        started_s = time.monotonic()
        missing = mpi.run_on_rank0(here, lambda: settle(config))
        with Progress(here, len(missing), what="making phantoms", unit="subject") as progress:
            mpi.together(here, lambda: write_subjects(root, phantom, mpi.partition(here, missing), progress))
        if here.rank == 0:
            shape, spacing = (
                " x ".join(f"{n:g}" for n in axes) for axes in (config.phantom.shape, config.phantom.spacing_mm)
            )
            print(
                f"{root}: {config.phantom.num_subjects} phantom subjects of {shape} voxels of {spacing} mm "
                f"({len(missing)} made now, {time.monotonic() - started_s:.0f} s)",
                flush=True,
            )


def subject_id(number: int) -> str:
    """`sub-01` for the first subject."""
    return f"sub-{number:02d}"


def subject_seed(seed: int, number: int) -> int:
    """The seed of one subject: its own, whatever the size of the cohort around it."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def check_place(config: MakePhantom) -> None:
    """Refuse settings and folders that cannot end well; changes nothing.

    UsageError: a layout other than the phantom's, the program's own folders, a phantom of other settings. DataError: a
    folder that holds something else, a subject that lacks a file.
    """
    root = Path(config.data.root)
    if config.data.layout != LAYOUT:
        raise UsageError(
            f"data={config.data.name}: the phantom is written as {LAYOUT.image}, {LAYOUT.label}, {LAYOUT.mask}; "
            "use data=phantom, or data=phantom_paper with preset=paper, and data.root=FOLDER to put it elsewhere"
        )
    checkout = Path(data_prep.__file__).resolve().parents[1]
    for name in SOURCE_FOLDERS:
        if root.resolve().is_relative_to(checkout / name):
            raise UsageError(f"data.root={root} lies inside the program's own {name}/; choose another")
    if root.exists() and not root.is_dir():
        raise DataError(f"data.root={root} is a file; give a folder")
    there = [name for name in (os.listdir(root) if root.exists() else []) if not name.startswith(".")]
    if SETTINGS_FILE in there:
        _check_same(root, config.phantom, there)
    elif set(there) - {SETTINGS_FILE + atomic_io.PARTIAL}:
        raise DataError(
            f"{root} holds {', '.join(sorted(there)[:3])} and no {SETTINGS_FILE}: it is no phantom cohort and stays as "
            "it is; give data.root=FOLDER or work_dir=FOLDER for a new one"
        )


def settle(config: MakePhantom) -> list[int]:
    """Check once more, now alone, record the settings and return the numbers of the subjects to make."""
    check_place(config)
    root = Path(config.data.root)
    try:
        atomic_io.write_text(root / SETTINGS_FILE, json.dumps(_settings(config.phantom), indent=2) + "\n")
    except OSError as error:
        raise ResourceError(f"{root / SETTINGS_FILE}: {atomic_io.describe(error)}") from error
    return [n for n in range(1, config.phantom.num_subjects + 1) if not (root / subject_id(n)).is_dir()]


def write_subjects(root: Path, phantom: Phantom, numbers: list[int], progress: Progress) -> None:
    """Make the subjects of these numbers, one after the other."""
    scanner = Scanner(phantom.slab_mm, phantom.bias, tuple(phantom.noise), phantom.point_spread_voxels)
    for number in numbers:
        image, vessel, mask, affine = generate_subject(
            subject_seed(phantom.seed, number), tuple(phantom.shape), tuple(phantom.spacing_mm), scanner
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
        progress.advance()


def _settings(phantom: Phantom) -> dict[str, object]:
    return {"recipe": RECIPE, **asdict(phantom)}


def _check_same(root: Path, phantom: Phantom, there: list[str]) -> None:
    """UsageError unless the cohort in `root` has these settings, DataError where it is damaged; it may grow."""
    path = root / SETTINGS_FILE
    try:
        # A cohort older than the scanner's settings was made by the first scanner.
        stored = json.loads(json.dumps(asdict(Scanner()))) | json.loads(path.read_text())
        made = {key: stored[key] for key in _settings(phantom)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not readable as a phantom's settings; remove {root} and run again") from error
    wanted = _settings(phantom)
    differences = [f"{key} {made[key]} there, {wanted[key]} asked for" for key in wanted if made[key] != wanted[key]]
    if made["num_subjects"] < wanted["num_subjects"]:
        differences = [words for words in differences if not words.startswith("num_subjects")]
    if differences:
        raise UsageError(
            f"{root} holds a phantom cohort of other settings ({'; '.join(differences)}) and stays as it is; "
            "give data.root=FOLDER or work_dir=FOLDER for a new one, or remove that folder"
        )
    allowed = {subject_id(number) for number in range(1, phantom.num_subjects + 1)}
    for name in sorted(set(there) - {SETTINGS_FILE, SETTINGS_FILE + atomic_io.PARTIAL}):
        if name not in allowed:
            raise DataError(f"{root / name} is not of this phantom cohort; move it away and run again")
        lacking = [file for file in NAMES if not (root / name / file).is_file()]
        if lacking:
            raise DataError(f"{root / name} lacks {', '.join(lacking)}; remove that folder and run again")


def main() -> None:
    """Entry of `python -m data_prep.make_phantom`."""
    mpi.run(lambda: parse("make_phantom", __doc__).config, make_cohort)


if __name__ == "__main__":
    main()
