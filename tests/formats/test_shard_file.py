"""A shard is written whole or not at all, to the same bytes, and no damage to it passes as data."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from vesselgan.core import atomic_io as files
from vesselgan.core.errors import DataError, ResourceError
from vesselgan.formats import shard_file
from vesselgan.formats.shard_file import Record, ShardFile, ShardInfo, write_shard

SHAPE = (6, 5, 4)


def sample(number: int, origin: str = "real", *, has_tissue: bool = False) -> Record:
    rng = np.random.default_rng(number)
    image = (rng.integers(0, 65536, SHAPE) / 257).astype(np.float32)
    score = rng.random(SHAPE).astype(np.float16) if origin == "synthetic" else None
    kind = "synthetic" if origin == "synthetic" else "grid"
    tissue = rng.integers(0, 3, SHAPE).astype(np.uint8) if has_tissue else None
    label, subject = (image > 99).astype(np.uint8), f"sub-{number}"
    return Record(image, label, subject, (number, 2, 3), kind, (0.0, 9.5), number, score, tissue)


def write(path: Path, count: int = 3, origin: str = "real") -> ShardInfo:
    return write_shard(path, [sample(i, origin) for i in range(count)], patch_shape=SHAPE, origin=origin)


def read_all(path: Path, count: int = 3, origin: str = "real") -> list[list]:
    """Everything that a reader can get out of a shard."""
    shard = ShardFile(path, count=count, patch_shape=SHAPE, origin=origin)
    try:
        rows = [[shard.read(name, row).tolist() for name in shard.voxels] for row in range(count)]
        return [rows, shard.subject_ids, *[table.tolist() for table in shard.tables.values()]]
    finally:
        shard.close()


def test_tissue_maps_come_back(tmp_path):
    records = [sample(i, has_tissue=True) for i in range(3)]
    write_shard(tmp_path / "a.h5", records, patch_shape=SHAPE, origin="real")
    shard = ShardFile(tmp_path / "a.h5", count=3, patch_shape=SHAPE, origin="real")
    assert all((shard.read("tissue", row) == record.tissue_XYZ).all() for row, record in enumerate(records))
    assert shard.value_problems() == []
    shard.close()
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["tissue"][1, 0, 0, 0] = 3
    shard = ShardFile(tmp_path / "a.h5", count=3, patch_shape=SHAPE, origin="real")
    assert shard.value_problems() == ["tissue of patch 1 is none of 0, 1 and 2"]
    shard.close()


def test_the_same_records_give_the_same_bytes(tmp_path):
    info = write(tmp_path / "a.h5", origin="synthetic")
    time.sleep(1.1)  # time stamps of HDF5 count whole seconds
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pathlib, test_shard_file as t;"
        "r = (t.sample(i, 'synthetic') for i in range(3));"
        "t.write_shard(pathlib.Path(sys.argv[2]), r, patch_shape=t.SHAPE, origin='synthetic')"
    )
    other = tmp_path / "deeper" / "b.h5"
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(other)], check=True, cwd=ROOT)
    assert (tmp_path / "a.h5").read_bytes() == other.read_bytes()
    assert info == ShardInfo("a.h5", 3, other.stat().st_size, files.sha256_of(other))
    assert os.listdir(other.parent) == ["b.h5"]
    assert b"GCOL" not in other.read_bytes()  # HDF5's heap without checksums, whose damage made a reader hang


ROOT = Path(__file__).resolve().parents[2]


def test_every_flipped_byte_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "s.h5"
    write(path, 2)
    whole, expected = bytearray(path.read_bytes()), read_all(path, 2)
    positions = np.random.default_rng(0).choice(len(whole), 200, replace=False)
    noticed = 0
    for position in sorted({*range(0, 200, 7), *positions.tolist()}):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            assert read_all(path, 2) == expected, f"byte {position} changed what is read, and nobody said so"
        except DataError as error:
            assert "s.h5" in str(error)
            noticed += 1
    assert noticed > 60  # the rest is padding that no reader looks at


def replaced(name: str, **options: object) -> Callable[[h5py.File], None]:
    """Put other values, or the same in another form, in place of a data set."""

    def change(file: h5py.File) -> None:
        data = options.pop("data", None)
        data = file[name][()] if data is None else data
        attributes = dict(file[name].attrs)
        del file[name]
        dataset = file.create_dataset(name, data=data, **{"fletcher32": True, "chunks": (1, *SHAPE), **options})
        dataset.attrs.update(attributes)

    return change


def linked(name: str, link: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.move(name, "elsewhere")
        file[name] = link

    return change


def unwritten(file: h5py.File) -> None:
    del file["label"]
    file.create_dataset("label", (3, *SHAPE), "u1", chunks=(1, *SHAPE), fletcher32=True)


def external(file: h5py.File) -> None:
    del file["limits"]
    file.create_dataset("limits", (3, 2), "f8", external=[("/etc/passwd", 0, 48)])


def virtual(file: h5py.File) -> None:
    del file["label"]
    layout = h5py.VirtualLayout((3, *SHAPE), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "label", (3, *SHAPE))
    file.create_virtual_dataset("label", layout)


def group(file: h5py.File) -> None:
    del file["corner"]
    file.create_group("corner")


WIDE = (3, *SHAPE, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.__delitem__("label"), "data set label is missing"),
        (lambda f: f.__delitem__("kind"), "data set kind is missing"),
        (lambda f: f.__delitem__("subject_id"), "data set subject_id is missing"),
        (replaced("image", dtype="f4"), "image is float32"),
        (replaced("label", dtype="i1"), "label is int8"),
        (replaced("label", data=np.zeros(WIDE, "u1"), chunks=(1, *SHAPE, 1)), r"label is uint8 \[3, 6, 5, 4, 1\]"),
        (replaced("image", data=np.zeros((2, *SHAPE), "u2")), r"image is uint16 \[2, 6, 5, 4\], expected"),
        (replaced("corner", data=np.zeros((3, 3), "i8"), chunks=(3, 3)), "corner is int64"),
        (replaced("subject_id", data=np.arange(3), chunks=(3,)), "subject_id is int64"),
        (replaced("subject", data=np.int32([0, 1, 3]), chunks=(3,)), "does not exist"),
        (replaced("subject", data=np.int32([0, -1, 2]), chunks=(3,)), "does not exist"),
        (replaced("kind", data=np.uint8([0, 1, 9]), chunks=(3,)), "does not exist"),
        (replaced("image", compression="gzip"), "filters"),
        (replaced("image", fletcher32=False), "filters"),
        (replaced("label", chunks=(3, *SHAPE)), "one patch each"),
        (unwritten, "not written in full"),
        (group, "corner is not a data set"),
        (external, "other files"),
        (virtual, "other files"),
        (linked("label", h5py.SoftLink("/elsewhere")), "label is a link"),
        (linked("image", h5py.ExternalLink("other.h5", "image")), "image is a link"),
        (lambda f: f["image"].attrs.__setitem__("scale", 1.0), "scale 1.0"),
        (lambda f: f.attrs.__delitem__("complete"), "never finished"),
        (lambda f: f.attrs.__setitem__("complete", 0), "never finished"),
        (lambda f: f.attrs.__setitem__("count", 4), "holds 4 patches, the manifest says 3"),
        (lambda f: f.attrs.__setitem__("origin", np.bytes_("synthetic")), "holds synthetic"),
        (lambda f: f.attrs.__setitem__("format", np.bytes_("x")), "not a shard"),
        (lambda f: f.attrs.__setitem__("format", [1, 2]), "attribute format is neither"),
        (lambda f: f.attrs.__setitem__("made_by", "kept in a heap"), "attribute made_by is neither"),
        (
            lambda f: f.attrs.update(format_version=2, made_by=np.bytes_("vesselgan 3.0")),
            "made by vesselgan 3.0 .*upgrade",
        ),
        (lambda f: f.attrs.__setitem__("format_version", np.bytes_("one")), "version 'one' is unknown"),
    ],
)
def test_a_file_that_breaks_the_format_is_refused(tmp_path, change, message):
    path = tmp_path / "s.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=message) as caught:
        read_all(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.999, -1])
def test_a_cut_file_is_refused(tmp_path, size):
    path = tmp_path / "s.h5"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(size * len(whole)) if 0 < size < 1 else int(size)])
    with pytest.raises(DataError, match=r"s\.h5"):
        read_all(path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.EACCES, errno.EIO])
def test_an_unreadable_shard_is_not_damaged(tmp_path, monkeypatch, number):
    write(tmp_path / "s.h5")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="s.h5"):
        patch.setattr(h5py, "File", refuse)
        read_all(tmp_path / "s.h5")
    monkeypatch.setattr(shard_file, "read_chunk", refuse)
    with pytest.raises(ResourceError, match="s.h5"):
        read_all(tmp_path / "s.h5")


def nan_image(record: Record) -> Record:
    image = record.image_XYZ.copy()
    image[1, 2, 3] = np.nan
    return replace(record, image_XYZ=image)


@pytest.mark.parametrize(
    ("origin", "change", "message"),
    [
        ("real", nan_image, "not finite"),
        ("real", lambda r: replace(r, image_XYZ=r.image_XYZ + 255), "outside"),
        ("real", lambda r: replace(r, image_XYZ=-r.image_XYZ), "outside"),
        ("real", lambda r: replace(r, label_XYZ=r.label_XYZ * 2), "label 2 is neither"),
        ("synthetic", lambda r: replace(r, score_XYZ=r.score_XYZ * np.float16(3)), "score"),
        ("synthetic", lambda r: replace(r, score_XYZ=r.score_XYZ * np.float16("nan")), "score"),
    ],
)
def test_a_record_that_breaks_the_contract_is_refused(tmp_path, origin, change, message):
    records = [sample(0, origin), change(sample(1, origin))]
    with pytest.raises(DataError, match=rf"patch 1 \(subject sub-1, corner \(1, 2, 3\)\).*{message}"):
        write_shard(tmp_path / "s.h5", records, patch_shape=SHAPE, origin=origin)
    assert os.listdir(tmp_path) == []


def test_no_records_or_a_failing_source_leave_nothing(tmp_path):
    def broken() -> Iterator[Record]:
        yield sample(0)
        raise OSError(errno.ENOSPC, "the maker's own trouble")

    with pytest.raises(DataError, match="no patches"):
        write_shard(tmp_path / "s.h5", [], patch_shape=SHAPE, origin="real")
    with pytest.raises(OSError, match="the maker's own trouble"):
        write_shard(tmp_path / "s.h5", broken(), patch_shape=SHAPE, origin="real")
    assert os.listdir(tmp_path) == []


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_shard_file as t
def records():
    for i in range(50):
        yield t.sample(i)
    print("writing", flush=True)
    time.sleep(60)
t.write_shard(sys.argv[2], records(), patch_shape=t.SHAPE, origin="real")
"""


def test_a_killed_writer_leaves_only_a_partial_file(tmp_path):
    path = tmp_path / "s.h5"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as writer:
        assert writer.stdout.readline() == b"writing\n"
        with pytest.raises(ResourceError, match=r"s\.h5") as caught:
            write(path)
        assert caught.value.exit_code == 6
        assert os.listdir(tmp_path) == ["s.h5.partial"]  # the refused one did not touch it
        writer.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == ["s.h5.partial"]
    write(path)
    assert os.listdir(tmp_path) == ["s.h5"]
    assert read_all(path)[1] == ["sub-0", "sub-1", "sub-2"]


LIMITED = """
import sys
sys.path.insert(0, sys.argv[1])
import test_shard_file as t
from vesselgan.core.errors import exit_on_error
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
records = (t.sample(i) for i in range(20))
exit_on_error(lambda: t.write_shard(sys.argv[2], records, patch_shape=t.SHAPE, origin="real"))
"""


def test_a_real_quota_ends_with_exit_6(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(Path(__file__).parent), str(tmp_path / "s.h5"), "3000"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 6, done.stderr  # HDF5 on its own crashes at exit: -11
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == [] and resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 3000


def test_a_text_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "new" / "m.json"
    files.write_text(path, "first")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "second")
    assert path.read_text() == "first" and os.listdir(path.parent) == ["m.json"]
