"""The patches of global batch `position`: a pure function, the same when resumed and on any number of ranks.

Every epoch is a new permutation of all patches by (seed, epoch); the rest that fills no batch is dropped. Ranks and
workers read slices of these batches.
"""

import numpy as np

from vesselgan.core.errors import UsageError


def steps_per_epoch(num_patches: int, batch_size: int) -> int:
    """Whole batches in one pass over the patches. Raises UsageError if there is none."""
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size} must be at least 1")
    if batch_size > num_patches:
        raise UsageError(
            f"batch_size={batch_size} is more than the {num_patches} patches; "
            f"take at most {num_patches} or make more patches"
        )
    return num_patches // batch_size


def batch_indices(num_patches: int, batch_size: int, seed: int, position: int) -> np.ndarray:
    """int64[batch_size]: the patches of global batch `position` (0, 1, ... across epochs)."""
    assert position >= 0, position
    epoch, step = divmod(position, steps_per_epoch(num_patches, batch_size))
    return permutation(num_patches, seed, epoch)[step * batch_size : (step + 1) * batch_size]


def permutation(num_patches: int, *key: int) -> np.ndarray:
    """int64[num_patches]: the permutation of a key, the same in every version of numpy.

    An argsort of raw random integers: numpy keeps those fixed for ever, but not `Generator.permutation`.
    """
    raw = np.random.Philox(np.random.SeedSequence(key)).random_raw(num_patches)
    return np.argsort(raw, kind="stable").astype(np.int64)


def derangement(num_patches: int, seed: int) -> np.ndarray:
    """int64[num_patches]: a permutation in which no patch keeps its place (one cycle through all of them).

    Raises UsageError for fewer than two patches.
    """
    if num_patches < 2:
        raise UsageError(f"data.shuffle_labels needs at least two patches to exchange labels, not {num_patches}")
    order = permutation(num_patches, seed)
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -1)
    return partner
