"""What can be wrong with shards, met as a user meets it: rows H1 to H11 of the project's list of faults.

H7 (kill -9 while writing) is in test_build_shards_processes and test_shard_file, H8 (disk full) in test_shard_file,
H10 (many workers, fork and spawn) in tests/data/test_patches.
"""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_prep import build_shards, lock
from vesselgan.config.schema import PreparedData
from vesselgan.errors import exit_on_error
from vesselgan.shards import ShardSet

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
        (newer, "made by vesselgan 9.0 in format version 2, this is vesselgan .* upgrade vesselgan"),
    ],
    ids=["H3 missing", "H3 type", "H3 rank", "H3 count", "H6 newer"],
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


def test_h11_a_second_job_in_the_folder_is_refused_with_host_process_and_job(
    cohort: MakeCohort, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort(4)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    lock.take(tmp_path / "work/phantom/.build_shards.lock", [lock.this_process()])
    ended = command(module=build_shards)
    assert ended.code == 6
    assert f"another job is building in {tmp_path / 'work/phantom'}: host {socket.gethostname()}" in ended.err
    assert f"process {os.getpid()}, job 4711; wait for it" in ended.err
