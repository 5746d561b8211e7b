"""A cohort of six tiny heads: bright tubes are vessels, a bright ball is not; NIfTI, cohort.json and U-Net shards."""

from pathlib import Path

import numpy as np
import pytest

from vesselgan.formats.cohort import Cohort
from vesselgan.formats.intensities import intensity_limits, scale_to_255
from vesselgan.formats.shards import Record

from ..conftest import write_shards, write_subject

SHAPE, PATCH, PATCHES_EACH = (24, 20, 16), (16, 16, 8), 12
SPLITS = {"sub-0": "train", "sub-1": "train", "sub-2": "train", "sub-3": "validation", "sub-4": "test", "sub-5": "test"}
PERCENTILES = (0.0, 99.9)
AFFINE = np.diag([0.5, 0.5, 0.7, 1.0])


def make_head(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(image, label): background 100, noise of 10, three straight tubes of 180 and a ball of 180."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    for axis in range(3):
        place = [slice(int(c), int(c) + 2) for c in rng.integers(2, np.array(SHAPE) - 4)]
        place[axis] = slice(None)
        label[tuple(place)] = 1
    centre = rng.integers(5, np.array(SHAPE) - 5).reshape(3, 1, 1, 1)
    ball = ((np.indices(SHAPE) - centre) ** 2).sum(0) < 16
    image = 100 + rng.normal(0, 10, SHAPE) + 80 * ((label > 0) | ball)
    return image.astype(np.float32), label


def cut_patches(subject: str, image: np.ndarray, label: np.ndarray) -> list[Record]:
    """Patches at random corners, each with its own."""
    rng = np.random.default_rng(int(subject[-1]))
    limits = intensity_limits(image, PERCENTILES)
    scaled = scale_to_255(image, limits)
    records = []
    for _ in range(PATCHES_EACH):
        corner = tuple(int(c) for c in rng.integers(0, np.array(SHAPE) - PATCH + 1))
        box = tuple(slice(c, c + n) for c, n in zip(corner, PATCH, strict=True))
        pair = (np.ascontiguousarray(array[box]) for array in (scaled, label))
        records.append(Record(*pair, subject, corner, "vessel", limits, 0))
    return records


def write_set(folder: Path, records: list[Record], hashes: dict[str, str]) -> None:
    """A folder of one shard; hashes: of the subjects' volumes."""
    subjects = {name: {"image_sha256": digest} for name, digest in hashes.items()}
    write_shards(folder, records, subjects=subjects, spacing_mm=(0.5, 0.5, 0.7), percentiles=PERCENTILES)


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort's folder; read it, do not change it."""
    folder = tmp_path_factory.mktemp("tiny")
    subjects, patches = {}, {"train": [], "validation": [], "test": []}
    for number, (name, split) in enumerate(SPLITS.items()):
        image, label = make_head(number)
        arrays, limits = {"image": image, "label": label}, intensity_limits(image, PERCENTILES)
        subjects[name] = write_subject(folder / "nifti" / name, split, arrays, AFFINE, limits=limits)
        patches[split] += cut_patches(name, image, label)
    Cohort("tiny", PERCENTILES, subjects).write(folder)
    digests = {name: subject.image_sha256 for name, subject in subjects.items()}
    for split in ("train", "validation"):
        write_set(folder / "shards" / "unet" / split, patches[split], digests)
    return folder


@pytest.fixture(scope="session")
def synthetic_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic shards: heads of other seeds, their score 0.8 in vessels and 0.1 elsewhere."""
    folder = tmp_path_factory.mktemp("synthetic")
    records = []
    for number in (6, 7, 8):
        image, label = make_head(number)
        for real in cut_patches(f"sub-{number}", image, label):
            score = np.where(real.label_XYZ > 0, 0.8, 0.1).astype(np.float16)
            name = f"synthetic-{len(records)}"
            records.append(Record(real.image_XYZ, real.label_XYZ, name, (0, 0, 0), "synthetic", (0.0, 255.0), 0, score))
    write_set(folder, records, {})
    return folder
