"""The nearest training patch of a patch.

Only the images are compared, standardised to mean 0 and standard deviation 1: brightness and contrast do not count. The
distance is the root mean square difference per voxel: 0 for equal patches, about 1.41 for unrelated ones of any size.
A constant patch is 1.41 from every other.

Q query patches, B patches of a block, V voxels
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
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
    def patient(self, i: int) -> str: ...
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
    excluded_patients: Sequence[str | None] | None = None,
) -> list[Neighbour | None]:
    """For each image [X, Y, Z] its nearest patch in `training`; one pass over `training` per MAX_BYTES of images.

    excluded_patients: per image one none of whose visits' patches count; the result is None if no patch is left.
    """
    remaining, neighbours = iter(images), list[Neighbour | None]()
    num_voxels = math.prod(training.patch_shape)
    max_queries = max(1, MAX_BYTES // (4 * num_voxels))
    while True:
        queries_QV, count = np.empty((max_queries, num_voxels), np.float32), 0
        while block := list(islice(remaining, min(BLOCK, max_queries - count))):
            if wrong := [np.shape(image) for image in block if np.shape(image) != tuple(training.patch_shape)]:
                raise DataError(f"images of {wrong[0]}, training patches of {tuple(training.patch_shape)}: no distance")
            queries_QV[count : count + len(block)] = [standardise(image) for image in block]
            count += len(block)
        done = len(neighbours)
        if count == 0:
            assert excluded_patients is None or len(excluded_patients) == done
            return neighbours
        excluded = [None] * count if excluded_patients is None else excluded_patients[done : done + count]
        neighbours += _search(queries_QV[:count], excluded, training)


def _search(
    queries_QV: np.ndarray,
    excluded: Sequence[str | None],
    training: Patches,
) -> list[Neighbour | None]:
    smallest_Q = np.full(len(queries_QV), np.inf)
    neighbours: list[Neighbour | None] = [None] * len(queries_QV)
    size_Q = np.einsum("qv,qv->q", queries_QV, queries_QV)
    for start, patients, block_BV in _blocks(training):
        size_B = np.einsum("bv,bv->b", block_BV, block_BV)
        square_QB = (size_Q[:, None] + size_B - 2.0 * (queries_QV @ block_BV.T)) / queries_QV.shape[1]
        square_QB[(size_Q == 0)[:, None] != (size_B == 0)] = 2.0
        distance_QB = np.sqrt(np.maximum(square_QB, 0.0))
        distance_QB[np.array(excluded, object)[:, None] == np.array(patients, object)[None]] = np.inf
        for q, b in enumerate(distance_QB.argmin(axis=1)):
            if distance_QB[q, b] < smallest_Q[q]:
                smallest_Q[q] = distance_QB[q, b]
                neighbours[q] = Neighbour(start + int(b), training.subject(start + int(b)), float(smallest_Q[q]))
    return neighbours


def _blocks(training: Patches) -> Iterator[tuple[int, list[str], np.ndarray]]:
    for start in range(0, len(training), BLOCK):
        indices = range(start, min(start + BLOCK, len(training)))
        block_BV = np.stack([standardise(training.image(i)) for i in indices])
        yield start, [training.patient(i) for i in indices], block_BV
