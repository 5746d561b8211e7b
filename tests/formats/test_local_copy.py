"""Copies of shards on a node's own disk: whole, made once, shared, never a damaged one."""

import hashlib
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.formats import local_copy
from vesselgan.formats.shards import Record, ShardSet, content_hash, verify

from ..conftest import edit_json, flip_bit, write_shards

PATCH_SHAPE = (8, 8, 8)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three noise patches each."""
    source = np.random.default_rng(3)
    images = [source.uniform(0, 255, PATCH_SHAPE).astype(np.float32) for _ in range(6)]
    label = np.zeros(PATCH_SHAPE, np.uint8)
    records = [Record(image, label, "sub-1", (0, 0, 0), "grid", (0.0, 1000.0), 0) for image in images]
    return write_shards(tmp_path / "shared/gan/train", records, files=2)


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_copy_is_exact_and_made_once(shards, tmp_path):
    copy, seconds = local_copy.copy_to_node(shards, str(tmp_path / "node"))
    assert seconds is not None and bytes_of(copy) == bytes_of(shards)
    assert verify(copy) == [] and content_hash(copy) == content_hash(shards)
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert local_copy.copy_to_node(shards, str(tmp_path / "node")) == (copy, None)
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_variables_are_filled_in_or_refused(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "here"))
    assert local_copy.copy_to_node(shards, "$NODE_DISK/job")[0].parent == tmp_path / "here/job"
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "a $BC"))  # a value may hold what looks like a variable
    assert local_copy.copy_to_node(shards, "${NODE_DISK}/job")[0].parent == tmp_path / "a $BC/job"
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(UsageError, match=r"data.local_copy_dir=\$NODE_DISK"):
        local_copy.copy_to_node(shards, "$NODE_DISK")


def test_damaged_shards_leave_no_whole_copy(shards, tmp_path):
    flip_bit(shards / "shard-1.h5")
    with pytest.raises(DataError, match="shard-1.h5"):
        local_copy.copy_to_node(shards, str(tmp_path / "node"))
    assert not list((tmp_path / "node").rglob("manifest.json"))


def test_a_truncated_copy_is_made_anew(shards, tmp_path):
    copy, _ = local_copy.copy_to_node(shards, str(tmp_path / "node"))
    os.truncate(copy / "shard-0.h5", 100)
    again, seconds = local_copy.copy_to_node(shards, str(tmp_path / "node"))
    assert again == copy and seconds is not None and bytes_of(copy) == bytes_of(shards)


def test_other_shards_get_another_copy(shards, tmp_path):
    first, _ = local_copy.copy_to_node(shards, str(tmp_path / "node"))
    write_shards(shards, list(ShardSet(shards))[:3])
    second, _ = local_copy.copy_to_node(shards, str(tmp_path / "node"))
    assert first != second and len(ShardSet(second)) == 3 and len(ShardSet(first)) == 6


def test_patients_named_later_get_another_copy(shards, tmp_path):
    first, _ = local_copy.copy_to_node(shards, str(tmp_path / "node"))
    edit_json(shards / "manifest.json", lambda manifest: manifest["subjects"]["sub-1"].update(patient="ann"))
    second, _ = local_copy.copy_to_node(shards, str(tmp_path / "node"))
    assert (ShardSet(first).patients(), ShardSet(second).patients()) == ({"sub-1"}, {"ann"})


def test_an_unusable_disk_is_a_resource_error(shards, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="data.local_copy_dir=.*file/below"):
        local_copy.copy_to_node(shards, str(tmp_path / "file/below"))
    usage = local_copy.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(local_copy.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(ResourceError, match="data.local_copy_dir|GiB"):
        local_copy.copy_to_node(shards, str(tmp_path / "node"))


def _copy_and_report(folder: Path, to: str, record: "multiprocessing.Queue[bool]") -> None:
    record.put(local_copy.copy_to_node(folder, to)[1] is not None)


def test_of_many_processes_of_a_node_one_copies(shards, tmp_path):
    context = multiprocessing.get_context("fork")
    record = context.Queue()
    processes = [
        context.Process(target=_copy_and_report, args=(shards, str(tmp_path / "node"), record)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    copied = [record.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(copied) == [False, False, False, True]
