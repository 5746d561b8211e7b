"""Reads a patch of a shard and compares it with HDF5's own checksum, faster than HDF5 does."""

# R rows, C columns of a table of packed words

import h5py
import numpy as np

_COLUMNS = 1024
_BLOCK_ROWS = 64  # 512 KiB in between, which fits into the cache
_MAX_BYTES = 2**29  # 65,536 rows: 32 bits hold the sum of so many 16-bit words


def read_chunk(voxels: h5py.Dataset, row: int) -> np.ndarray:
    """One patch. Raises OSError if it does not match its checksum.

    HDF5 checks word by word, which took half of a patch's loading time; here four words at a time are checked. Sizes
    that do not fill the rows are read through HDF5.
    """
    num_bytes = voxels.dtype.itemsize * int(np.prod(voxels.shape[1:]))
    if num_bytes % (8 * _COLUMNS) or num_bytes > _MAX_BYTES:
        return voxels[row]
    content = np.empty(num_bytes + 4, np.uint8)
    skipped_filters, _ = voxels.id.read_direct_chunk((row, 0, 0, 0), out=content)
    stored = int.from_bytes(content[num_bytes:].tobytes(), "little")
    sums = (stored & 0xFFFF) % 65535, (stored >> 16) % 65535
    if skipped_filters or sums != fletcher_sums(content[:num_bytes].view("<u8")):
        raise OSError("Fletcher-32 differs")
    return content[:num_bytes].view(voxels.dtype).reshape(voxels.shape[1:])


def fletcher_sums(packed: np.ndarray) -> tuple[int, int]:
    """Both sums of HDF5's Fletcher-32 modulo 65535, of N 16-bit words packed in fours: sum w_i and sum (N - i) w_i.

    HDF5 takes each word's first byte as the higher one. Modulo 65535 that is a factor of 256, so it is applied at the
    end. The packed words are summed over rows and over columns; `_sum_by_word` takes the sums apart.
    """
    table_RC = packed.reshape(-1, _COLUMNS)
    num_rows = len(table_RC)
    whole_R, odd_R = np.empty((2, num_rows), np.uint64)
    whole_C, odd_C = np.zeros((2, _COLUMNS), np.uint64)
    scratch_RC = np.empty((min(_BLOCK_ROWS, num_rows), _COLUMNS), np.uint64)
    for start in range(0, num_rows, _BLOCK_ROWS):
        block_RC, rows = table_RC[start : start + _BLOCK_ROWS], slice(start, start + _BLOCK_ROWS)
        lanes_RC = scratch_RC[: len(block_RC)]
        np.right_shift(block_RC, np.uint64(16), out=lanes_RC)
        np.bitwise_and(lanes_RC, np.uint64(0x0000FFFF0000FFFF), out=lanes_RC)
        for part_RC, sums_R, sums_C in ((block_RC, whole_R, whole_C), (lanes_RC, odd_R, odd_C)):
            np.add.reduce(part_RC, axis=1, out=sums_R[rows])
            sums_C += np.add.reduce(part_RC, axis=0)
    row_R, column_C = np.arange(num_rows, dtype=np.uint64), np.arange(_COLUMNS, dtype=np.uint64)
    words_4R, words_4C = _sum_by_word(whole_R, odd_R), _sum_by_word(whole_C, odd_C)
    by_row, by_column = int((row_R * words_4R.sum(axis=0)).sum()), int((column_C * words_4C.sum(axis=0)).sum())
    by_position = words_4C.sum(axis=1).tolist()
    total = sum(by_position)
    weighted = 4 * (_COLUMNS * by_row + by_column) + sum(position * plain for position, plain in enumerate(by_position))
    return total * 256 % 65535, (4 * packed.size * total - weighted) * 256 % 65535


def _sum_by_word(whole: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """uint64 [4, ...]: how much each of the four words came to. `whole`: sums of the packed words as they were, modulo
    2^64; `odd`: sums of the second and fourth word, 32 bits apart, which never carry into each other."""
    even = whole - (odd << np.uint64(16))  # modulo 2^64 too: what is left of the first and third word fits
    low = np.uint64(0xFFFFFFFF)
    return np.stack([even & low, odd & low, even >> np.uint64(32), odd >> np.uint64(32)])
