"""What can be wrong with shards, met as a user meets it at the commands."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

from data_prep import build_shards, preprocess
from vesselgan.config.schema import PreparedData
from vesselgan.core import atomic_io as files
from vesselgan.core.errors import exit_on_error
from vesselgan.data.patches import ShardDataset
from vesselgan.formats.shards import ShardSet, verify

MakeCohort = Callable[..., PreparedData]
Command = Callable[..., Any]


@pytest.fixture
def shard(cohort: MakeCohort, command: Command, tmp_path: Path) -> Path:
    """The only shard of the GAN's set, built a moment ago."""
    cohort(4)
    assert command("data.prepare.pairs_per_shard=256", module=build_shards).code == 0
    return tmp_path / "work/phantom/shards/gan/train/shard-00000.h5"


def read_as_a_program(folder: Path, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Exit code and last words of a program that reads every pair of the set."""

    def program() -> None:
        shards = ShardSet(folder)
        for i in range(len(shards)):
            shards.pair(i, 0.3)

    capsys.readouterr()
    try:
        exit_on_error(program)
    except SystemExit as end:
        return end.code, capsys.readouterr().err
    return 0, ""


def flip_in_a_chunk(path: Path) -> None:
    with h5py.File(path) as file:
        start = file["image"].id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[start + 77] ^= 4
    path.write_bytes(content)


def test_a_damaged_shard_is_named_and_rebuilt_alone(
    shard: Path, command: Command, capsys: pytest.CaptureFixture
) -> None:
    whole = shard.read_bytes()
    others = {path: path.stat().st_mtime_ns for path in shard.parents[2].rglob("*.h5") if path != shard}
    flip_in_a_chunk(shard)
    code, said = read_as_a_program(shard.parent, capsys)
    assert code == 3 and said.startswith(f"error: {shard}: ") and said.count("\n") == 1
    ended = command("data.prepare.pairs_per_shard=256", module=build_shards)
    assert ended.code == 3 and str(shard) in ended.err and "data.prepare.repair=true" in ended.err
    ended = command("data.prepare.pairs_per_shard=256", "data.prepare.repair=true", module=build_shards)
    assert (ended.code, ended.err) == (0, "")
    assert shard.read_bytes() == whole
    assert {path: path.stat().st_mtime_ns for path in others} == others


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


def test_a_full_disk_ends_building_with_exit_6(
    cohort: MakeCohort, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort(4)
    shards = tmp_path / "work/phantom/shards"
    # the GAN's 34 pairs of 6 KiB fit, the U-Net's 42 after them do not
    with monkeypatch.context() as patched:
        fill_disk_after(patched, 260_000)
        ended = command("data.prepare.pairs_per_shard=256", module=build_shards)
    assert ended.code == 6
    assert ended.err.startswith(f"error: {shards}/unet/train/shard-00000.h5: ")
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("manifest.json"))
    assert [path.relative_to(shards).as_posix() for path in shards.rglob("*.h5")] == ["gan/train/shard-00000.h5"]
    ended = command("data.prepare.pairs_per_shard=256", module=build_shards)
    assert (ended.code, ended.err) == (0, "") and "(0 built, 1 were there)" in ended.out
    assert verify(shards / "gan/train") == verify(shards / "unet/train") == []


def test_a_full_disk_ends_preprocessing_with_exit_6(
    cohort: MakeCohort, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort(4)
    out, words = tmp_path / "work/phantom/preprocessed", ("preprocess.denoise=false", "preprocess.bias=false")
    with monkeypatch.context() as patched:
        fill_disk_after(patched, 50_000)
        ended = command(*words, module=preprocess)
    assert ended.code == 6 and "image.nii.gz" in ended.err
    there = sorted(path.name for path in out.iterdir())
    assert there[0] == "preprocess.json" and set(there[1:]) < {"sub-01", "sub-02", "sub-03", "sub-04"}
    assert command(*words, module=preprocess).code == 0


def test_a_constant_patch_is_minus_1(cohort: MakeCohort, command: Command, tmp_path: Path) -> None:
    root = Path(cohort(4).root)
    for path in root.glob("*/image.nii.gz"):
        image = nib.load(path)
        array = np.asarray(image.dataobj).copy()
        array[:16, :16, -8:] = 0  # one whole patch of the grid
        nib.save(nib.Nifti1Image(array, image.affine), path)
    assert command("data.prepare.max_clipped_vessel_share=1", module=build_shards).code == 0
    shards = ShardSet(tmp_path / "work/phantom/shards/gan/train")
    constant = [i for i in range(len(shards)) if shards[i].corner == (0, 0, 10)]
    assert len(constant) == 2
    for scaling in ("volume", "patch"):
        dataset = ShardDataset(shards, scaling=scaling, label_threshold=0.3, intensity="signed")
        for i in constant:
            assert (dataset[i][0] == -1).all()
