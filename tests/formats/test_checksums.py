"""The shards' own reading of HDF5's checksums: the same verdict as HDF5's on every patch, whole or damaged."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from vesselgan.core.errors import DataError
from vesselgan.formats.checksums import fletcher_sums
from vesselgan.formats.shard_file import Record, ShardFile, write_shard

SHAPE = (32, 32, 16)  # 32,768 and 16,384 bytes: whole rows of lanes for image, label and score


def stored_sums(path: Path, name: str, row: int) -> tuple[int, int]:
    """What HDF5 wrote behind the chunk, modulo 65535."""
    with h5py.File(path) as file:
        content = bytes(file[name].id.read_direct_chunk((row, 0, 0, 0))[1])
    checksum = int.from_bytes(content[-4:], "little")
    return (checksum & 0xFFFF) % 65535, (checksum >> 16) % 65535


def by_hand(words: list[int]) -> tuple[int, int]:
    """Fletcher-32 word by word, on big-endian words as HDF5 takes them."""
    first = second = 0
    for word in words:
        first = (first + (word >> 8 | (word & 0xFF) << 8)) % 65535
        second = (second + first) % 65535
    return first, second


def written(path: Path, words: np.ndarray) -> tuple[int, int]:
    """HDF5's own checksum of these words as one chunk."""
    with h5py.File(path, "w") as file:
        shape = (1, len(words) // 256, 16, 16)
        file.create_dataset("d", data=words.reshape(shape), chunks=shape, fletcher32=True)
    return stored_sums(path, "d", 0)


@pytest.mark.parametrize("kind", ["random", "zeros", "full", "one"])
def test_sums_are_those_by_hand_and_of_hdf5(tmp_path, kind):
    draw = np.random.default_rng(5)
    words = {
        "random": draw.integers(0, 65536, 8192),
        "zeros": np.zeros(8192, int),
        "full": np.full(8192, 65535),
        "one": np.eye(1, 8192, 5234, int)[0],
    }[kind].astype("<u2")
    assert fletcher_sums(words.view("<u8")) == by_hand(words.tolist()) == written(tmp_path / "a.h5", words)


@pytest.mark.parametrize("num_rows", [1, 64, 65, 200])
def test_blocks_of_rows_give_hdf5s_sums(tmp_path, num_rows):
    words = np.random.default_rng(num_rows).integers(0, 65536, 4 * 1024 * num_rows).astype("<u2")
    assert fletcher_sums(words.view("<u8")) == written(tmp_path / "a.h5", words)


def test_the_largest_lanes_do_not_overflow():
    # 2 ** 26 words of 65535: each a multiple of the modulus, so both sums vanish; a carry between lanes would show
    packed = np.full(2**24, 0xFFFFFFFFFFFFFFFF, "<u8")
    assert fletcher_sums(packed) == (0, 0)


def sample(number: int) -> Record:
    draw = np.random.default_rng(number)
    image = (draw.integers(0, 65536, SHAPE) / 257).astype(np.float32)
    score = draw.random(SHAPE).astype(np.float16)
    return Record(image, (score > 0.5).astype(np.uint8), "s", (number, 0, 0), "synthetic", (0.0, 1.0), 0, score)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_shard(tmp_path / "s.h5", [sample(n) for n in range(3)], patch_shape=SHAPE, origin="synthetic")
    return tmp_path / "s.h5"


def opened(path: Path) -> ShardFile:
    return ShardFile(path, count=3, patch_shape=SHAPE, origin="synthetic")


def test_patches_come_back_as_hdf5_reads_them(shard):
    reader = opened(shard)
    with h5py.File(shard, locking=False) as file:
        for name in ("image", "label", "score"):
            for row in range(3):
                patch = reader.read(name, row)
                assert patch.dtype == file[name].dtype and patch.flags.writeable
                np.testing.assert_array_equal(patch, file[name][row])
    reader.close()


@pytest.mark.parametrize("name", ["image", "label", "score"])
def test_damage_to_one_patch_leaves_the_others(shard, name):
    with h5py.File(shard) as file:
        start, size = file[name].id.get_chunk_info(1).byte_offset, file[name].id.get_chunk_info(1).size
    whole = shard.read_bytes()
    draw = np.random.default_rng(7)
    for position in [0, 1, size - 5, size - 4, size - 1, *draw.integers(0, size, 30).tolist()]:
        damaged = bytearray(whole)
        damaged[start + position] ^= 1 << int(draw.integers(0, 8))
        shard.write_bytes(damaged)
        reader = opened(shard)
        with pytest.raises(DataError, match=f"s.h5: patch 1 of data set {name}"):
            reader.read(name, 1)
        reader.read(name, 0), reader.read(name, 2)
        reader.close()
