"""Small shard sets of noise with bright labelled bars: a GAN's training set, a held-out one and a synthetic one."""

from pathlib import Path

import pytest

from ..conftest import write_set


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where features of equal sets are kept for all tests."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def image_road(tmp_path: Path, features: Path) -> Path:
    """A work folder: 8 training patches of two patients, 18 held-out ones of three others, 20 synthetic."""
    shards = tmp_path / "phantom" / "shards"
    write_set(shards / "gan" / "train", range(100, 108), ["sub-1", "sub-2"])
    write_set(shards / "unet" / "validation", range(200, 218), ["sub-3", "sub-4", "sub-5"])
    made = [f"synthetic-{i}" for i in range(20)]
    write_set(tmp_path / "run" / "synthetic", range(300, 320), made, kind="synthetic")
    (tmp_path / "features").symlink_to(features)
    return tmp_path
