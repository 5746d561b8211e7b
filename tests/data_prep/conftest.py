"""Cohorts for the tests of data preparation: a few tiny NIfTI volumes and the settings that fit them."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from data_prep import build_shards, check, mpi
from data_prep.mpi import MpiWorld
from vesselgan.config.compose import compose
from vesselgan.config.schema import BuildShards, PreparedData, Split

ALONE = MpiWorld(0, 1, None)
ROOT = Path(__file__).resolve().parents[2]
MPIEXEC = Path(sys.executable).with_name("mpiexec")
MakeCohort = Callable[..., PreparedData]
Hashes = Callable[[PreparedData], dict[str, str]]
Command = Callable[..., Any]
SMALL = ["data.prepare.patch_shape=[16,16,8]", "data.prepare.num_vessel_patches_gan=5"]
SMALL += ["data.prepare.num_vessel_patches_unet=9", "data.prepare.split.validation=1", "data.prepare.split.test=1"]
SHAPE = (24, 20, 18)
AFFINE = np.diag([0.5, 0.5, 0.7, 1.0])


def build(data: PreparedData, *purposes: str) -> None:
    """Build shards in this process."""
    config = BuildShards(work_dir="unused", data=data, purposes=list(purposes or ("gan", "unet")))
    build_shards.build(config, ALONE)


def python_on_ranks(num_ranks: int) -> list[str]:
    """How Python is started; skips the test where there is no mpiexec for several ranks."""
    if num_ranks > 1 and not MPIEXEC.exists():
        pytest.skip("no mpiexec beside this Python (extra: mpich)")
    return [str(MPIEXEC), "-n", str(num_ranks), sys.executable, "-m", "mpi4py"] if num_ranks > 1 else [sys.executable]


def run(words: list[str]) -> subprocess.CompletedProcess:
    """A command's output, from the checkout's root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=False)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def change(path: Path, edit: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> None:
    """Rewrite a volume with the array that `edit` makes of its own."""
    old = nib.load(path)
    nib.save(nib.Nifti1Image(edit(np.asarray(old.dataobj).copy()), old.affine if affine is None else affine), path)


def write_pair(image: Path, label: Path, values: Sequence[int], seed: int) -> None:
    """An image with a bright line of 12 voxels per value, and the lines as label."""
    draw = np.random.default_rng(seed)
    voxels, classes = draw.integers(50, 150, (20, 20, 12)).astype(np.int16), np.zeros((20, 20, 12), np.uint8)
    for column, value in enumerate(values):
        classes[column, 4:16, seed % 12] = value
    voxels[classes > 0] += 60
    voxels[0, 0] = 2000
    for path, array in ((image, voxels), (label, classes)):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), path)


def write_subject(folder: Path, seed: int) -> None:
    """One subject: noise on a body of 50..150 with a bright vessel, its label, and a mask of the inner half."""
    draw = np.random.default_rng(seed)
    image = draw.integers(50, 150, SHAPE).astype(np.int16)
    image[:3] = 0  # background
    label = np.zeros(SHAPE, np.uint8)
    label[8 + seed // 4 : 10 + seed // 4, 4:16, 6 + seed % 4 : 9 + seed % 4] = 1
    image[label == 1] += 60
    image[20, 10, 10:14] = 2000  # brighter than any vessel, so that scaling clips no vessel
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:20, 3:17, 2:16] = 1
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("image", image), ("vessel", label), ("brain_mask", mask)):
        nib.save(nib.Nifti1Image(array, AFFINE), folder / f"{name}.nii.gz")


@pytest.fixture
def cohort(tmp_path: Path) -> Callable[..., PreparedData]:
    """A function that writes `num_subjects` subjects and gives the settings to prepare them."""

    def make(num_subjects: int, *, split: Split | None = None) -> PreparedData:
        root = tmp_path / "nifti"
        for number in range(1, num_subjects + 1):
            write_subject(root / f"sub-{number:02d}", seed=number)
        words = ["data=phantom", "data.name=tiny", f"data.root={root}", f"data.cohort_dir={tmp_path / 'work' / 'tiny'}"]
        words += [*SMALL, "data.prepare.grid_patches=[gan]", "data.prepare.pairs_per_shard=6"]
        data = compose("build_shards", [*words, "data.prepare.upper_percentile=99.99"]).data
        data.prepare.split = split or data.prepare.split
        return data

    return make


@pytest.fixture
def hashes() -> Callable[[PreparedData], dict[str, str]]:
    """A function: name -> sha256 of every file that a build left, but the one that holds the inputs' times."""

    def of(data: PreparedData) -> dict[str, str]:
        folder = Path(data.cohort_dir)
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "state.json"]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return of


@dataclass
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Said]:
    """A function: run check (or build_shards) on the cohort in tmp_path/nifti with more words, as from a shell."""
    monkeypatch.setattr(mpi, "get_world", lambda: MpiWorld(0, 1, None))

    def run(*words: str, module: Any = check) -> Said:
        common = ["data=phantom", f"data.root={tmp_path / 'nifti'}", f"work_dir={tmp_path / 'work'}", *SMALL]
        monkeypatch.setattr(sys, "argv", ["command", *common, *words])
        capsys.readouterr()
        try:
            module.main()
            code = 0
        except SystemExit as end:
            code = end.code
        seen = capsys.readouterr()
        return Said(code, seen.out, seen.err)

    return run
