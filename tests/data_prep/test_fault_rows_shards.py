"""What can be wrong with shards, met as a user meets it: rows H1 to H11 of the project's list of faults.

H7 (kill -9 while writing) is in test_build_shards_processes and test_shard_file, H8 (a quota met for real) in
test_shard_file too, H10 (many workers, fork and spawn) in tests/data/test_patches.
"""

import errno
import io
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

from data_prep import build_shards, lock, preprocess
from vesselgan.config.schema import PreparedData
from vesselgan.core import atomic_io
from vesselgan.core.errors import exit_on_error
from vesselgan.data.patches import PatchDataset
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
            shards.read_pair(i, scaling="volume", label_threshold=0.3)

    capsys.readouterr()
    try:
        exit_on_error(program)
    except SystemExit as end:
        return end.code, capsys.readouterr().err
    return 0, ""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_in_a_chunk(path: Path) -> None:
    with h5py.File(path) as file:
        start = file["image"].id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[start + 77] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [cut, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(os.urandom(5000)), flip_in_a_chunk],
    ids=["H1 cut", "H1 empty", "H1 random", "H2 flipped"],
)
def test_a_damaged_shard_is_named_by_readers_and_builds_and_rebuilt_alone(
    shard: Path, command: Command, capsys: pytest.CaptureFixture, damage: Callable[[Path], None]
) -> None:
    whole = shard.read_bytes()
    others = {path: path.stat().st_mtime_ns for path in shard.parents[2].rglob("*.h5") if path != shard}
    damage(shard)
    code, said = read_as_a_program(shard.parent, capsys)
    assert code == 3 and said.startswith(f"error: {shard}: ") and said.count("\n") == 1
    assert "rebuild it: python -m data_prep.build_shards with data.prepare.repair=true" in said
    ended = command("data.prepare.pairs_per_shard=256", module=build_shards)
    assert ended.code == 3 and str(shard) in ended.err and "data.prepare.repair=true" in ended.err
    ended = command("data.prepare.pairs_per_shard=256", "data.prepare.repair=true", module=build_shards)
    assert (ended.code, ended.err) == (0, "") and f"rebuilding {shard}" in ended.out
    assert shard.read_bytes() == whole
    assert {path: path.stat().st_mtime_ns for path in others} == others


def without_labels(file: h5py.File) -> None:
    del file["label"]


def other_type(file: h5py.File) -> None:
    stored = file["image"][:]
    del file["image"]
    file.create_dataset("image", data=stored.astype(np.float32), chunks=(1, *stored.shape[1:]), fletcher32=True)


def other_rank(file: h5py.File) -> None:
    stored = file["label"][:]
    del file["label"]
    file.create_dataset("label", data=stored[..., None], chunks=(1, *stored.shape[1:], 1), fletcher32=True)


def other_count(file: h5py.File) -> None:
    file.attrs.modify("count", 3)


def one_row_less(file: h5py.File) -> None:
    for name in ("image", "label"):
        file[name].resize(33, axis=0)


def without_corners(file: h5py.File) -> None:
    del file["corner"]


def without_an_attribute(file: h5py.File) -> None:
    del file.attrs["origin"]


def newer(file: h5py.File) -> None:
    file.attrs.modify("format_version", 2)
    file.attrs.modify("made_by", np.bytes_("vesselgan 9.0"))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (without_labels, "data set label is missing"),
        (other_type, "data set image is float32 .* expected uint16"),
        (other_rank, "data set label is uint8 .* expected uint8"),
        (other_count, "holds 3 patches, the manifest says 34"),
        (one_row_less, r"data set image is uint16 \[33, 16, 16, 8\], expected uint16 \[34, 16, 16, 8\]"),
        (without_corners, "data set corner is missing"),
        (without_an_attribute, "holds None patches, the manifest says real"),
        (newer, "made by vesselgan 9.0 in format version 2, this is vesselgan .* upgrade vesselgan"),
    ],
    ids=["H3 missing", "H3 type", "H3 rank", "H3 count", "H3 rows", "H3 table", "H3 attribute", "H6 newer"],
)
def test_a_shard_of_another_schema_or_version_ends_readers_with_exit_3_and_words(
    shard: Path, capsys: pytest.CaptureFixture, edit: Callable[[h5py.File], None], said: str
) -> None:
    with h5py.File(shard, "r+") as file:
        edit(file)
    manifest = shard.with_name("manifest.json")
    listed = shard.stat().st_size  # as though it had been written so: the size alone must not give it away
    text = manifest.read_text()
    old = text[text.index('"bytes":') :].split(",")[0].split("}")[0].strip()
    manifest.write_text(text.replace(old, f'"bytes": {listed}', 1))
    code, told = read_as_a_program(shard.parent, capsys)
    assert code == 3 and told.startswith(f"error: {shard}: ") and told.count("\n") == 1
    assert re.search(said, told), told


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
    monkeypatch.setattr(atomic_io, "open", lambda p, mode, **_: SmallDisk(p, mode.replace("b", "")), raising=False)


def test_h8_a_disk_that_fills_ends_a_build_with_exit_6_and_keeps_what_is_whole(
    cohort: MakeCohort, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort(4)
    shards = tmp_path / "work/phantom/shards"
    # the GAN's 34 pairs of 6 KiB fit, the U-Net's 42 after them do not
    with monkeypatch.context() as patched:
        fill_disk_after(patched, 260_000)
        ended = command("data.prepare.pairs_per_shard=256", module=build_shards)
    assert ended.code == 6
    assert ended.err.startswith(f"error: {shards}/unet/train/shard-00000.h5: the disk is full or a quota is used up")
    # 42 pairs of 16 x 16 x 8 voxels of 3 bytes: 0.246 MiB
    assert "needs about 0.2 MiB free: make room and start again (finished shards are kept)" in ended.err
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("manifest.json"))
    assert [path.relative_to(shards).as_posix() for path in shards.rglob("*.h5")] == ["gan/train/shard-00000.h5"]
    ended = command("data.prepare.pairs_per_shard=256", module=build_shards)
    assert (ended.code, ended.err) == (0, "") and "gan/train: 34 pairs in 1 shards (0 built, 1 were there)" in ended.out
    assert verify(shards / "gan/train") == verify(shards / "unet/train") == []


def test_h8_a_disk_that_fills_ends_preprocessing_with_exit_6_and_no_half_subject(
    cohort: MakeCohort, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort(4)
    out, words = tmp_path / "work/phantom/preprocessed", ("preprocess.denoise=false", "preprocess.bias=false")
    with monkeypatch.context() as patched:
        fill_disk_after(patched, 50_000)
        ended = command(*words, module=preprocess)
    assert ended.code == 6 and "image.nii.gz: cannot be written (No space left on device" in ended.err
    there = sorted(path.name for path in out.iterdir())
    assert there[0] == "preprocess.json" and set(there[1:]) < {"sub-01", "sub-02", "sub-03", "sub-04"}
    assert command(*words, module=preprocess).code == 0


def test_d6_a_constant_patch_is_minus_1_for_the_gan_and_never_0_by_0(
    cohort: MakeCohort, command: Command, tmp_path: Path
) -> None:
    root = Path(cohort(4).root)
    for path in root.glob("*/image.nii.gz"):
        image = nib.load(path)
        array = np.asarray(image.dataobj).copy()
        array[:16, :16, -8:] = 0  # one whole patch of the grid
        nib.save(nib.Nifti1Image(array, image.affine), path)
    assert command("data.prepare.max_clipped_vessel_share=1", module=build_shards).code == 0
    shards = ShardSet(tmp_path / "work/phantom/shards/gan/train")
    constant = [i for i in range(len(shards)) if shards.record(i).corner == (0, 0, 10)]
    assert len(constant) == 2
    for scaling in ("volume", "patch"):
        dataset = PatchDataset(shards, scaling=scaling, label_threshold=0.3, intensity="signed")
        for i in constant:
            assert (dataset[i][0] == -1).all()


def test_h11_a_second_job_in_the_folder_is_refused_with_host_process_and_job(
    cohort: MakeCohort, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort(4)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    lock.acquire_lock(tmp_path / "work/phantom/.build_shards.lock", [lock.this_process()])
    ended = command(module=build_shards)
    assert ended.code == 6
    assert f"another job is building in {tmp_path / 'work/phantom'}: host {socket.gethostname()}" in ended.err
    assert f"process {os.getpid()}, job 4711; wait for it" in ended.err
