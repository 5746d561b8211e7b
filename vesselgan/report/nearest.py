"""Which training patch a sample resembles most, and how near real patches of different people are to each other.

A patch is compared as its image alone, standardised to mean 0 and standard deviation 1, so that brightness and contrast
do not count. The distance is the L2 norm per voxel (root mean square): 0 for equal patches, about 1.41 for unrelated
ones, whatever the patch's size.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vesselgan.shards import ShardSet

BLOCK = 16  # patches compared at once


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
    images: Iterable[np.ndarray], training: ShardSet, *, not_of: Sequence[str | None] | None = None
) -> list[Neighbour | None]:
    """For each image (X x Y x Z) its nearest patch among all of `training`, in one pass over them.

    `not_of`: per image a subject whose patches do not count. None where nothing is left to compare with.
    """
    queries_QV = np.array([standardise(image) for image in images])
    assert not_of is None or len(not_of) == len(queries_QV)
    size_Q = np.einsum("qv,qv->q", queries_QV, queries_QV)
    best = np.full(len(queries_QV), np.inf)
    found: list[Neighbour | None] = [None] * len(queries_QV)
    for start, subjects, block_BV in _blocks(training):
        size_B = np.einsum("bv,bv->b", block_BV, block_BV)
        square_QB = size_Q[:, None] + size_B[None] - 2.0 * (queries_QV @ block_BV.T)
        distance_QB = np.sqrt(np.maximum(square_QB, 0.0) / queries_QV.shape[1])
        if not_of is not None:
            distance_QB[np.array(not_of, object)[:, None] == np.array(subjects, object)[None]] = np.inf
        for q, b in enumerate(distance_QB.argmin(axis=1)):
            if distance_QB[q, b] < best[q]:
                best[q] = distance_QB[q, b]
                found[q] = Neighbour(start + int(b), subjects[b], float(best[q]))
    return found


def _blocks(training: ShardSet) -> Iterator[tuple[int, list[str], np.ndarray]]:
    for start in range(0, len(training), BLOCK):
        records = [training.record(i) for i in range(start, min(start + BLOCK, len(training)))]
        yield start, [r.subject for r in records], np.stack([standardise(r.image_XYZ) for r in records])
