"""Which training patch a patch resembles most.

A patch is compared as its image alone, standardised to mean 0 and standard deviation 1, so that brightness and contrast
do not count. The distance is the L2 norm per voxel (root mean square): 0 for equal patches, about 1.41 for unrelated
ones, whatever the patch's size. A patch of one value is 1.41 from every other.

Q patches asked about, B patches of a block, V voxels, P parts
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Protocol

import numpy as np

BLOCK = 32  # training patches compared at once
MOST_BYTES = 2**30  # patches asked about that one pass over the training patches holds


class Patches(Protocol):
    """What is compared with: a shard set, or whatever else hands out its patches by number."""

    @property
    def patch_shape(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def subject(self, i: int) -> str: ...
    def image_XYZ(self, i: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Neighbour:
    """The nearest patch: its number in the training shards, its subject, and the distance (see the module)."""

    index: int
    subject: str
    distance: float


def standardise(image_XYZ: np.ndarray) -> np.ndarray:
    """The image as a float32 vector of mean 0 and standard deviation 1; a constant image becomes zeros."""
    flat_V = np.asarray(image_XYZ, np.float32).ravel()
    flat_V = flat_V - flat_V.mean(dtype=np.float64).astype(np.float32)
    deviation = math.sqrt(float(np.mean(flat_V * flat_V, dtype=np.float64)))
    return flat_V / np.float32(deviation) if deviation > 1e-6 else np.zeros_like(flat_V)


def nearest(
    images: Iterable[np.ndarray],
    training: Patches,
    *,
    not_of: Sequence[str | None] | None = None,
    in_any_turn: bool = False,
) -> list[Neighbour | None]:
    """For each image (X x Y x Z) its nearest patch among all of `training`; a pass over them for each MOST_BYTES.

    `not_of`: per image a subject whose patches do not count. None where nothing is left to compare with. `in_any_turn`:
    the smallest distance over mirrorings along each axis and, where X and Y are of one size, their exchange: what
    training may show a patch as (data.augment).
    """
    source, found = iter(images), list[Neighbour | None]()
    forms = _Forms(training.patch_shape) if in_any_turn else None
    num_voxels = math.prod(training.patch_shape)
    most = max(1, MOST_BYTES // (4 * num_voxels))
    while True:
        queries_QV, count = np.empty((most, num_voxels), np.float32), 0
        while some := list(islice(source, min(BLOCK, most - count))):
            some_BV = np.stack([standardise(image) for image in some])
            queries_QV[count : count + len(some)] = some_BV if forms is None else forms.split(some_BV)
            count += len(some)
        if count == 0:
            assert not_of is None or len(not_of) == len(found)
            return found
        others = [None] * count if not_of is None else not_of[len(found) : len(found) + count]
        found += _search(queries_QV[:count], others, training, forms)


def _search(
    queries_QV: np.ndarray, not_of: Sequence[str | None], training: Patches, forms: "_Forms | None"
) -> list[Neighbour | None]:
    best = np.full(len(queries_QV), np.inf)
    found: list[Neighbour | None] = [None] * len(queries_QV)
    size_Q = np.einsum("qv,qv->q", queries_QV, queries_QV)
    for start, subjects, block_BV in _blocks(training):
        size_B = np.einsum("bv,bv->b", block_BV, block_BV)
        dot_QB = queries_QV @ block_BV.T if forms is None else forms.largest_product(queries_QV, block_BV)
        square_QB = (size_Q[:, None] + size_B - 2.0 * dot_QB) / queries_QV.shape[1]
        square_QB[(size_Q == 0)[:, None] != (size_B == 0)] = 2.0
        distance_QB = np.sqrt(np.maximum(square_QB, 0.0))
        distance_QB[np.array(not_of, object)[:, None] == np.array(subjects, object)[None]] = np.inf
        for q, b in enumerate(distance_QB.argmin(axis=1)):
            if distance_QB[q, b] < best[q]:
                best[q] = distance_QB[q, b]
                found[q] = Neighbour(start + int(b), subjects[b], float(best[q]))
    return found


def _blocks(training: Patches) -> Iterator[tuple[int, list[str], np.ndarray]]:
    for start in range(0, len(training), BLOCK):
        numbers = range(start, min(start + BLOCK, len(training)))
        yield (
            start,
            [training.subject(i) for i in numbers],
            np.stack([standardise(training.image_XYZ(i)) for i in numbers]),
        )


class _Forms:
    """All mirrorings of a patch at the price of one.

    `split` is an orthonormal change of basis into eight parts, even or odd along each axis. A mirroring turns the sign
    of some parts, so the products with all eight mirrored patches are sums and differences of the parts' products.
    """

    def __init__(self, patch_shape: Sequence[int]) -> None:
        self.shape = tuple(patch_shape)
        sizes = [math.prod(halves) for halves in product(*((size - size // 2, size // 2) for size in self.shape))]
        ends = np.cumsum(sizes)
        self.parts = [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]
        axes = list(product((0, 1), repeat=3))
        self.signs_FP = np.array([[(-1) ** sum(a * b for a, b in zip(f, p, strict=True)) for p in axes] for f in axes])
        """Of each mirroring, how it turns each part."""

    def split(self, block_BV: np.ndarray) -> np.ndarray:
        parts = [block_BV.reshape(-1, *self.shape)]
        for axis in (1, 2, 3):
            parts = [half for part in parts for half in _halves(part, axis)]
        return np.concatenate([part.reshape(len(block_BV), -1) for part in parts], axis=1)

    def largest_product(self, queries_QV: np.ndarray, block_BV: np.ndarray) -> np.ndarray:
        """[Q, B]: of split queries with plain patches of a block, the largest over all turns."""
        largest_QB = np.full((len(queries_QV), len(block_BV)), -np.inf, np.float32)
        for is_exchanged in (False, True) if self.shape[0] == self.shape[1] else (False,):
            split_BV = self.split(self._exchanged(block_BV) if is_exchanged else block_BV)
            products_PQB = np.stack([queries_QV[:, part] @ split_BV[:, part].T for part in self.parts])
            for signs_P in self.signs_FP.astype(np.float32):
                np.maximum(largest_QB, np.tensordot(signs_P, products_PQB, axes=1), out=largest_QB)
        return largest_QB

    def _exchanged(self, block_BV: np.ndarray) -> np.ndarray:
        return block_BV.reshape(-1, *self.shape).swapaxes(1, 2).reshape(len(block_BV), -1)


def _halves(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(the even part along `axis` with the middle plane, the odd part): n - n // 2 and n // 2 planes."""
    lines = np.moveaxis(array, axis, 0)
    half = len(lines) // 2
    first, last, middle = lines[:half], lines[::-1][:half], lines[half : len(lines) - half]
    root = np.float32(math.sqrt(0.5))
    even = np.concatenate([(first + last) * root, middle])
    return np.moveaxis(even, 0, axis), np.moveaxis((first - last) * root, 0, axis)
