"""What can be wrong with shards, met as a user meets it at the commands."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest

from data_prep import build_shards, preprocess
from vesselgan.core import atomic_io as files
from vesselgan.data.patches import ShardDataset
from vesselgan.formats.shards import ShardSet, verify

from .conftest import SHAPE, change


class SmallDisk(io.FileIO):
    """A file on a disk that all of them fill together."""

    room = 0

    def write(self, data: memoryview) -> int:
        if len(data) > SmallDisk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        SmallDisk.room -= len(data)
        return super().write(data)


def fill_disk_after(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    SmallDisk.room = room
    monkeypatch.setattr(files, "open", lambda p, mode, **_: SmallDisk(p, mode.replace("b", "")), raising=False)


def test_a_full_disk_ends_building_with_exit_6(cohort, command, tmp_path, monkeypatch):
    cohort(4)
    shards = tmp_path / "work/phantom/shards"
    # the GAN's 34 pairs of 8 KiB fit, the U-Net's 42 after them do not
    with monkeypatch.context() as patched:
        fill_disk_after(patched, 320_000)
        ended = command("data.prepare.pairs_per_shard=256", module=build_shards)
    assert ended.code == 6
    assert ended.err.startswith(f"error: {shards}/unet/train/shard-00000.h5: ")
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("manifest.json"))
    assert [path.relative_to(shards).as_posix() for path in shards.rglob("*.h5")] == ["gan/train/shard-00000.h5"]
    ended = command("data.prepare.pairs_per_shard=256", module=build_shards)
    assert (ended.code, ended.err) == (0, "") and "(0 built, 1 were there)" in ended.out
    assert verify(shards / "gan/train") == verify(shards / "unet/train") == []


def test_a_full_disk_ends_preprocessing_with_exit_6(cohort, command, tmp_path, monkeypatch):
    cohort(4)
    out, words = tmp_path / "work/phantom/preprocessed", ("preprocess.denoise=false", "preprocess.bias=false")
    with monkeypatch.context() as patched:
        fill_disk_after(patched, 50_000)
        ended = command(*words, module=preprocess)
    assert ended.code == 6 and "image.nii.gz" in ended.err
    there = sorted(path.name for path in out.iterdir())
    assert there[0] == "preprocess.json" and set(there[1:]) < {"sub-01", "sub-02", "sub-03", "sub-04"}
    assert command(*words, module=preprocess).code == 0


def test_a_constant_patch_is_minus_1(cohort, command, tmp_path):
    root = Path(cohort(4).root)
    grid_patch = np.zeros(SHAPE, bool)
    grid_patch[:16, :16, -8:] = True  # one whole patch of the grid
    for path in root.glob("*/image.nii.gz"):
        change(path, lambda image: np.where(grid_patch, 0, image))
    assert command("data.prepare.max_clipped_vessel_share=1", module=build_shards).code == 0
    shards = ShardSet(tmp_path / "work/phantom/shards/gan/train")
    constant = [i for i in range(len(shards)) if shards[i].corner == (0, 0, 10)]
    assert len(constant) == 2
    for scaling in ("volume", "patch"):
        dataset = ShardDataset(shards, scaling=scaling, label_threshold=0.3, intensity="signed")
        for i in constant:
            assert (dataset[i][0] == -1).all()
