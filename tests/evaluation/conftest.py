"""Small shard sets of noise with bright labelled bars: a GAN's training set, a held-out one and a synthetic one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vesselgan.formats.shards import Record

from ..conftest import write_shards

SHAPE = (16, 16, 16)
SPACING_MM = (0.5, 0.5, 0.8)


def make_patch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(image, label): noise around 60 with a bar of 4 x 4 voxels at 200, air (0) in one corner."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    y, z = rng.integers(3, 10, 2)
    label[:, y : y + 4, z : z + 4] = 1
    image = np.clip(60 + 8 * rng.normal(size=SHAPE) + 140 * label, 1, 255)
    image[:2, :2, :2] = 0
    return image.astype(np.float32), label


WriteSet = Callable[..., Path]


@pytest.fixture(scope="session")
def write_set() -> WriteSet:
    def write(
        folder: Path,
        seeds: range | list[int],
        subjects: list[str],
        *,
        origin: str = "real",
        kind: str = "vessel",
        make: Callable[[int], tuple[np.ndarray, np.ndarray]] = make_patch,
    ) -> Path:
        """Record i is make(seeds[i]) of subjects[i % len(subjects)]."""
        records = []
        for place, seed in enumerate(seeds):
            image, label = make(seed)
            score = (0.8 * label).astype(np.float16) if origin == "synthetic" else None
            tissue = None if origin == "synthetic" else np.full_like(label, place % 3)
            subject = subjects[place % len(subjects)]
            records.append(Record(image, label, subject, (0, 0, 0), kind, (0.0, 900.0), 0, score, tissue))
        extra = {"run": "tiny", "threshold": 0.3} if origin == "synthetic" else {}
        return write_shards(folder, records, spacing_mm=SPACING_MM, extra=extra)

    return write


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where features of equal sets are kept for all tests."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def image_road(tmp_path: Path, write_set: WriteSet, features: Path) -> Path:
    """A work folder: 8 training patches of two patients, 18 held-out ones of three others, 20 synthetic."""
    shards = tmp_path / "phantom" / "shards"
    write_set(shards / "gan" / "train", range(100, 108), ["sub-1", "sub-2"])
    write_set(shards / "unet" / "validation", range(200, 218), ["sub-3", "sub-4", "sub-5"])
    made = [f"synthetic-{i}" for i in range(20)]
    write_set(tmp_path / "run" / "synthetic", range(300, 320), made, origin="synthetic", kind="synthetic")
    (tmp_path / "features").symlink_to(features)
    return tmp_path
