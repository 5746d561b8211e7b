"""What goes into a set of shards comes out of it, and whatever is not whole is refused by name."""

import multiprocessing
import pickle
import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats import shards as shards_module
from vesselgan.formats.shard_file import ShardFile
from vesselgan.formats.shards import (
    MANIFEST,
    Record,
    ShardInfo,
    ShardSet,
    content_hash,
    verify,
    write_manifest,
    write_shard,
)

from ..conftest import edit_json, flip_bit, write_shards

SHAPE = (6, 5, 4)


def sample(number: int, origin: str = "real") -> Record:
    rng = np.random.default_rng(number)
    score = rng.random(SHAPE).astype(np.float16) if origin == "synthetic" else None
    return Record(
        image_XYZ=(rng.integers(0, 65536, SHAPE) / 257).astype(np.float32),
        label_XYZ=rng.integers(0, 2, SHAPE).astype(np.uint8),
        subject=f"sub-{number // 2}-é",
        corner=(number, -1, 2**31 - 1),
        kind="synthetic" if origin == "synthetic" else ("grid", "vessel")[number % 2],
        limits=(0.1 * number, 1e300),
        num_clipped=2**40 + number,
        score_XYZ=score,
    )


def list_in_manifest(folder: Path, infos: list[ShardInfo], origin: str = "real") -> None:
    subjects = {f"sub-{i}-é": {"spacing_mm": [0.5, 0.5, 0.7], "affine": np.eye(4).tolist()} for i in range(9)}
    write_manifest(
        folder,
        shards=infos,
        patch_shape=SHAPE,
        origin=origin,
        subjects=subjects,
        spacing_mm=(0.5, 0.5, 0.7),
        percentiles=(0.0, 99.99),
        extra={"purpose": "gan"},
    )


def make_set(folder: Path, counts: tuple[int, ...] = (3, 2), origin: str = "real") -> list[Record]:
    records = [sample(number, origin) for number in range(sum(counts))]
    ends = np.cumsum(counts)
    infos = [
        write_shard(folder / f"shard-{k}.h5", records[end - count : end], patch_shape=SHAPE, origin=origin)
        for k, (count, end) in enumerate(zip(counts, ends, strict=True))
    ]
    list_in_manifest(folder, infos, origin)
    return records


def assert_same(got: Record, expected: Record) -> None:
    for name in ("image_XYZ", "label_XYZ", "score_XYZ"):
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    for name in ("subject", "corner", "kind", "limits", "num_clipped"):
        assert getattr(got, name) == getattr(expected, name)


@pytest.mark.parametrize("origin", ["real", "synthetic"])
def test_records_come_back_bit_for_bit_across_shards(tmp_path, origin):
    records = make_set(tmp_path, (3, 1, 2), origin)
    shards = ShardSet(tmp_path)
    assert len(shards) == 6 and shards.patch_shape == SHAPE and shards.origin == origin
    assert shards.spacing_mm == (0.5, 0.5, 0.7) and shards.subjects["sub-1-é"]["affine"][3] == [0, 0, 0, 1]
    for i in (5, 0, 3, 2, 4, 1):
        assert_same(shards[i], records[i])
    assert [shards.shard_of(i)[6] for i in range(6)] == list("000122")
    for outside in (-7, 6):
        with pytest.raises(IndexError):
            shards[outside]
    assert verify(tmp_path) == []


@settings(max_examples=10, deadline=None)
@given(values=st.lists(st.floats(0, 255, width=32), min_size=8, max_size=8), start=st.integers(0, 65536 - 8))
def test_intensities_round_trip_within_half_a_step(tmp_path_factory, values, start):
    folder = tmp_path_factory.mktemp("set")
    grid = ((start + np.arange(8)) / 257).astype(np.float32)
    image = np.stack([np.float32(values), grid]).reshape(2, 4, 2)
    label = np.zeros((2, 4, 2), np.uint8)
    record = Record(image, label, "a", (0, 0, 0), "grid", (0.0, 1.0), 0)
    back = ShardSet(write_shards(folder, [record], percentiles=None)).image(0)
    np.testing.assert_array_equal(back[1], image[1])
    # Half a step of 1/257, and two units in the last place of float32 near 255 for the arithmetic.
    assert np.abs(back[0].astype(np.float64) - image[0]).max() <= 0.5 / 257 + 2 * np.spacing(np.float32(255))


@pytest.mark.parametrize("origin", ["real", "synthetic"])
def test_a_set_is_a_sequence_of_records(tmp_path, origin):
    records = make_set(tmp_path, (3, 2), origin)
    with ShardSet(tmp_path) as shards:
        for number, record in enumerate(shards):
            assert_same(record, records[number])
        assert_same(shards[-1], records[4])
        assert_same(shards[np.int64(1)], records[1])
        assert [record.subject for record in shards[-2::-2]] == [records[3].subject, records[1].subject]
        np.testing.assert_array_equal(shards.image(-5), records[0].image_XYZ)
        assert "5" in repr(shards) and origin in repr(shards) and str(tmp_path) in repr(shards)
    assert shards._open == {}


def test_only_what_is_asked_is_read(tmp_path, monkeypatch):
    records, read = make_set(tmp_path, (1,), "synthetic"), []
    whole = ShardFile.read
    monkeypatch.setattr(ShardFile, "read", lambda file, name, row: (read.append(name), whole(file, name, row))[1])
    shards = ShardSet(tmp_path)
    shards.image(0), shards.image(0, "patch"), shards.stored_image(0)
    assert set(read) == {"image"}
    np.testing.assert_array_equal(shards.score(0), records[0].score_XYZ.astype(np.float32))
    shards.label(0, 0.3)
    assert set(read) == {"image", "score"}
    np.testing.assert_array_equal(shards.label(0), records[0].label_XYZ)
    np.testing.assert_array_equal(shards.pair(0)[1], records[0].label_XYZ)


def test_real_patches_have_no_score(tmp_path):
    make_set(tmp_path)
    assert ShardSet(tmp_path).label_threshold is None
    with pytest.raises(UsageError):
        ShardSet(tmp_path).score(0)


def test_the_reader_chooses_a_synthetic_labels_threshold(tmp_path):
    make_set(tmp_path / "real")
    records = make_set(tmp_path / "synthetic", (2,), "synthetic")
    synthetic, real = ShardSet(tmp_path / "synthetic"), ShardSet(tmp_path / "real")
    for threshold in (0.1, 0.5, 0.999):
        expected = records[1].score_XYZ.astype(np.float64) >= threshold
        np.testing.assert_array_equal(synthetic.label(1, threshold), expected)
        image, label = synthetic.pair(1, threshold)
        np.testing.assert_array_equal(image, records[1].image_XYZ)
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_array_equal(real.label(0, threshold), real[0].label_XYZ)


def test_a_score_equal_to_the_threshold_is_vessel(tmp_path):
    record = sample(0, "synthetic")
    score = np.full(SHAPE, 0.5, np.float16)
    score[0] = np.nextafter(np.float16(0.5), np.float16(0))
    record = Record(**{**record.__dict__, "score_XYZ": score})
    info = write_shard(tmp_path / "s.h5", [record], patch_shape=SHAPE, origin="synthetic")
    list_in_manifest(tmp_path, [info], "synthetic")
    label = ShardSet(tmp_path).label(0, 0.5)
    assert label[0].max() == 0 and label[1:].min() == 1


def test_every_process_opens_its_own_files(tmp_path):
    records = make_set(tmp_path)
    shards = ShardSet(tmp_path)
    shards[0]
    copy = pickle.loads(pickle.dumps(shards))
    assert copy._open == {} and shards._open != {}
    assert_same(copy[4], records[4])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for got, expected in zip(pool.map(shards.__getitem__, range(5), chunksize=1), records, strict=True):
            assert_same(got, expected)
    assert_same(shards[0], records[0])
    shards.close()
    assert_same(shards[0], records[0])


def test_open_files_are_limited(tmp_path, monkeypatch):
    records = make_set(tmp_path, (1, 1, 1, 1))
    monkeypatch.setattr(shards_module, "_MAX_OPEN", 2)
    shards = ShardSet(tmp_path)
    for i in (0, 1, 2, 3, 0):
        assert_same(shards[i], records[i])
        assert len(shards._open) <= 2


def test_a_content_hash_follows_patches_and_order_alone(tmp_path):
    make_set(tmp_path / "a")
    make_set(tmp_path / "b")
    make_set(tmp_path / "c", (2, 3))
    edit_json(tmp_path / "b" / MANIFEST, lambda m: m.update(extra={"note": 1}))
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b") != content_hash(tmp_path / "c")
    edit_json(tmp_path / "b" / MANIFEST, lambda m: m["shards"].reverse())
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "b")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut, empty, noise, Path.unlink])
def test_a_damaged_or_missing_shard_is_named(tmp_path, damage):
    make_set(tmp_path)
    damage(tmp_path / "shard-1.h5")
    with pytest.raises(DataError, match=r"shard-1\.h5.*data\.prepare\.repair") as caught:
        ShardSet(tmp_path)[4]
    assert caught.value.exit_code == 3
    problems = verify(tmp_path)
    assert len(problems) == 1 and "shard-1.h5" in problems[0]
    assert len(verify(tmp_path, deep=False)) == 1


def test_verify_names_every_bad_shard_and_only_them(tmp_path):
    make_set(tmp_path, (1, 1, 1))
    for bad in ("shard-0.h5", "shard-2.h5"):
        flip_bit(tmp_path / bad, -1)
    assert [re.search(r"shard-\d", problem)[0] for problem in verify(tmp_path)] == ["shard-0", "shard-2"]


def test_verify_finds_forbidden_values_and_subjects(tmp_path):
    make_set(tmp_path, (2,))
    with h5py.File(tmp_path / "shard-0.h5", "r+") as file:
        file["label"][1, 0, 0, 0] = 7
    path = tmp_path / "shard-0.h5"
    list_in_manifest(tmp_path, [ShardInfo(path.name, 2, path.stat().st_size, shards_module.sha256_of(path))])
    assert verify(tmp_path, deep=False) == []
    assert "label of patch 1 is neither 0 nor 1" in verify(tmp_path)[0]
    edit_json(tmp_path / MANIFEST, lambda m: m["subjects"].pop("sub-0-é"))
    assert "subject sub-0-é is not in the manifest" in verify(tmp_path, deep=False)[0]
    with pytest.raises(DataError, match=r"shard-0\.h5.*sub-0-é"):
        ShardSet(tmp_path).image(0)


def raise_version(content: dict) -> None:
    content.update(format_version=3, made_by="vesselgan 9.1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (raise_version, "made by vesselgan 9.1 .*upgrade"),
        (lambda m: m.update(format_version=0), "format version 0 is unknown"),
        (lambda m: m.update(format="other"), "not a manifest"),
        (lambda m: m.pop("patch_shape"), "patch_shape"),
        (lambda m: m.update(patch_shape=[8, 8]), "patch_shape"),
        (lambda m: m.update(patch_shape=[8, 8, 0.5]), "damaged"),
        (lambda m: m.update(spacing_mm=[1, 1, float("nan")]), "spacing_mm"),
        (lambda m: m.update(origin="borrowed"), "borrowed"),
        (lambda m: m.update(count=6), "count is 6.* sum to 5"),
        (lambda m: m.update(shards=[]), "count"),
        (lambda m: m.update(subjects=[1]), "damaged"),
        (lambda m: m["subjects"]["sub-0-é"].update(shape=[300, 300, 1]), "shape"),
        (lambda m: m["subjects"]["sub-0-é"].update(shape=[300, 300]), "damaged"),
        (lambda m: m["shards"][0].update(file="../shard-0.h5"), "is no id"),
        (lambda m: m["shards"][0].update(file="/etc/passwd"), "is no id"),
        (lambda m: m["shards"][0].update(count=-3), "shard-0.h5"),
        (lambda m: m["shards"][0].pop("sha256"), "damaged"),
        (lambda m: m["shards"][0].update(size=1), "damaged"),
    ],
)
def test_a_manifest_that_breaks_the_format_is_refused(tmp_path, change, message):
    make_set(tmp_path)
    edit_json(tmp_path / MANIFEST, change)
    with pytest.raises(DataError, match=message) as caught:
        ShardSet(tmp_path)
    assert str(tmp_path / MANIFEST) in str(caught.value)
    assert verify(tmp_path) == [str(caught.value)]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_json_is_refused(tmp_path, content):
    make_set(tmp_path)
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match=MANIFEST):
        ShardSet(tmp_path)


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(DataError, match="vesselgan build-shards"):
        ShardSet(tmp_path / "nowhere")


@pytest.mark.parametrize("hostile", ["../../up", "/tmp/up", "two\nlines", "\x1b[2J", "."])
def test_ids_are_plain_names(tmp_path, hostile):
    for change in (
        lambda content: content["subjects"].update({hostile: {}}),
        lambda content: content["subjects"]["sub-1-é"].update(patient=hostile),
        lambda content: content["shards"][0].update(file=hostile),
    ):
        make_set(tmp_path)
        edit_json(tmp_path / MANIFEST, change)
        with pytest.raises(DataError):
            ShardSet(tmp_path)
    record = replace(sample(0), subject=hostile)
    list_in_manifest(tmp_path, [write_shard(tmp_path / "s.h5", [record], patch_shape=SHAPE, origin="real")])
    with pytest.raises(DataError):
        ShardSet(tmp_path).subject(0)


def test_a_shard_is_no_link_out_of_its_folder(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    make_set(there), make_set(here)
    (here / "shard-0.h5").rename(here / "kept.h5")
    (here / "shard-0.h5").symlink_to("kept.h5")
    assert len(ShardSet(here)) == 5
    (here / "shard-0.h5").unlink()
    (here / "shard-0.h5").symlink_to(there / "shard-0.h5")
    with pytest.raises(DataError, match="link"):
        ShardSet(here)
    (tmp_path / "linked").symlink_to(there)
    assert len(ShardSet(tmp_path / "linked")) == 5
