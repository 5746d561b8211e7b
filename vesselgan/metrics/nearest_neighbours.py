"""The nearest training patch of a patch.

Only the images are compared, standardised to mean 0 and standard deviation 1: brightness and contrast do not count. The
distance is the root mean square difference per voxel: 0 for equal patches, about 1.41 for unrelated ones of any size.
A constant patch is 1.41 from every other.

Q query patches, B patches of a block, V voxels, P parity components
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Protocol

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.metrics.masks import LARGEST, as_finite

BLOCK = 32  # training patches compared at once
MAX_BYTES = 2**30  # memory of the queries of one pass over the training patches


class Patches(Protocol):
    """The training patches: a shard set, or anything else indexed by patch number."""

    @property
    def patch_shape(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def subject(self, i: int) -> str: ...
    def image(self, i: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Neighbour:
    """The nearest patch: its index in the training shards, its subject, and the distance (see the module)."""

    index: int
    subject: str
    distance: float


def standardise(image_XYZ: np.ndarray) -> np.ndarray:
    """The image as a float32 vector of mean 0 and standard deviation 1; a constant image becomes zeros.

    DataError for values that are not finite or from LARGEST on.
    """
    flat_V = np.asarray(as_finite(image_XYZ, "image", largest=LARGEST), np.float32).ravel()
    flat_V = flat_V - flat_V.mean(dtype=np.float64).astype(np.float32)
    deviation = math.sqrt(float(np.mean(flat_V * flat_V, dtype=np.float64)))
    return flat_V / np.float32(deviation) if deviation > 1e-6 else np.zeros_like(flat_V)


def nearest(
    images: Iterable[np.ndarray],
    training: Patches,
    *,
    excluded_subjects: Sequence[str | None] | None = None,
    any_orientation: bool = False,
) -> list[Neighbour | None]:
    """For each image [X, Y, Z] its nearest patch in `training`; one pass over `training` per MAX_BYTES of images.

    excluded_subjects: per image a subject whose patches do not count; the result is None if no patch is left.
    any_orientation: the smallest distance over the mirrorings along each axis and, for equal X and Y, their exchange:
    the orientations of the augmentation (data.augment).
    """
    remaining, neighbours = iter(images), list[Neighbour | None]()
    orientations = _Orientations(training.patch_shape) if any_orientation else None
    num_voxels = math.prod(training.patch_shape)
    max_queries = max(1, MAX_BYTES // (4 * num_voxels))
    while True:
        queries_QV, count = np.empty((max_queries, num_voxels), np.float32), 0
        while block := list(islice(remaining, min(BLOCK, max_queries - count))):
            if wrong := [np.shape(image) for image in block if np.shape(image) != tuple(training.patch_shape)]:
                raise DataError(f"images of {wrong[0]}, training patches of {tuple(training.patch_shape)}: no distance")
            block_BV = np.stack([standardise(image) for image in block])
            if orientations is not None:
                block_BV = orientations.split(block_BV)
            queries_QV[count : count + len(block)] = block_BV
            count += len(block)
        done = len(neighbours)
        if count == 0:
            assert excluded_subjects is None or len(excluded_subjects) == done
            return neighbours
        excluded = [None] * count if excluded_subjects is None else excluded_subjects[done : done + count]
        neighbours += _search(queries_QV[:count], excluded, training, orientations)


def _search(
    queries_QV: np.ndarray,
    excluded: Sequence[str | None],
    training: Patches,
    orientations: "_Orientations | None",
) -> list[Neighbour | None]:
    smallest_Q = np.full(len(queries_QV), np.inf)
    neighbours: list[Neighbour | None] = [None] * len(queries_QV)
    size_Q = np.einsum("qv,qv->q", queries_QV, queries_QV)
    for start, subjects, block_BV in _blocks(training):
        size_B = np.einsum("bv,bv->b", block_BV, block_BV)
        if orientations is None:
            dot_QB = queries_QV @ block_BV.T
        else:
            dot_QB = orientations.largest_product(queries_QV, block_BV)
        square_QB = (size_Q[:, None] + size_B - 2.0 * dot_QB) / queries_QV.shape[1]
        square_QB[(size_Q == 0)[:, None] != (size_B == 0)] = 2.0
        distance_QB = np.sqrt(np.maximum(square_QB, 0.0))
        distance_QB[np.array(excluded, object)[:, None] == np.array(subjects, object)[None]] = np.inf
        for q, b in enumerate(distance_QB.argmin(axis=1)):
            if distance_QB[q, b] < smallest_Q[q]:
                smallest_Q[q] = distance_QB[q, b]
                neighbours[q] = Neighbour(start + int(b), subjects[b], float(smallest_Q[q]))
    return neighbours


def _blocks(training: Patches) -> Iterator[tuple[int, list[str], np.ndarray]]:
    for start in range(0, len(training), BLOCK):
        indices = range(start, min(start + BLOCK, len(training)))
        block_BV = np.stack([standardise(training.image(i)) for i in indices])
        yield start, [training.subject(i) for i in indices], block_BV


class _Orientations:
    """All mirrorings of a patch at the cost of one.

    `split` is an orthonormal change of basis into eight components, even or odd along each axis. A mirroring flips the
    sign of some of them, so products with all eight mirrored patches are signed sums of the components' products.
    """

    def __init__(self, patch_shape: Sequence[int]) -> None:
        self.shape = tuple(patch_shape)
        sizes = [math.prod(halves) for halves in product(*((size - size // 2, size // 2) for size in self.shape))]
        ends = np.cumsum(sizes)
        self.components = [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]
        bits = list(product((0, 1), repeat=3))
        self.signs_FP = np.array([[(-1) ** sum(a * b for a, b in zip(f, p, strict=True)) for p in bits] for f in bits])
        """Sign of each component under each mirroring [F flips, P]."""

    def split(self, block_BV: np.ndarray) -> np.ndarray:
        components = [block_BV.reshape(-1, *self.shape)]
        for axis in (1, 2, 3):
            components = [half for component in components for half in _even_and_odd(component, axis)]
        return np.concatenate([component.reshape(len(block_BV), -1) for component in components], axis=1)

    def largest_product(self, queries_QV: np.ndarray, block_BV: np.ndarray) -> np.ndarray:
        """[Q, B]: largest dot product of split queries with the patches of a block, over all orientations."""
        largest_QB = np.full((len(queries_QV), len(block_BV)), -np.inf, np.float32)
        for is_exchanged in (False, True) if self.shape[0] == self.shape[1] else (False,):
            split_BV = self.split(self._exchange_xy(block_BV) if is_exchanged else block_BV)
            products_PQB = np.stack([queries_QV[:, span] @ split_BV[:, span].T for span in self.components])
            for signs_P in self.signs_FP.astype(np.float32):
                np.maximum(largest_QB, np.tensordot(signs_P, products_PQB, axes=1), out=largest_QB)
        return largest_QB

    def _exchange_xy(self, block_BV: np.ndarray) -> np.ndarray:
        return block_BV.reshape(-1, *self.shape).swapaxes(1, 2).reshape(len(block_BV), -1)


def _even_and_odd(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(the component even along `axis`, with the middle plane; the odd one): n - n // 2 and n // 2 planes."""
    planes = np.moveaxis(array, axis, 0)
    half = len(planes) // 2
    first, last, middle = planes[:half], planes[::-1][:half], planes[half : len(planes) - half]
    root = np.float32(math.sqrt(0.5))
    even = np.concatenate([(first + last) * root, middle])
    return np.moveaxis(even, 0, axis), np.moveaxis((first - last) * root, 0, axis)
