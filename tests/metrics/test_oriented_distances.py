"""Distances between sets of patches: against a plain search, and copies however they are turned, shifted or lit."""

import itertools
import math

import numpy as np
import pytest

from vesselgan.core.errors import DataError
from vesselgan.metrics import oriented_distances
from vesselgan.metrics.oriented_distances import UNRELATED, distances, on_grid


def noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def standardised(array: np.ndarray) -> np.ndarray:
    return (array - array.mean()) / array.std()


def plain(query: np.ndarray, reference: np.ndarray) -> float:
    """Every mirroring and exchange of the query's inner part against every window, one by one."""
    inner = query[1:-1, 1:-1, 1:-1]
    forms = [inner, *([inner.swapaxes(0, 1)] if inner.shape[0] == inner.shape[1] else [])]
    axes = [some for count in range(4) for some in itertools.combinations(range(3), count)]
    windows = [
        reference[x : x + inner.shape[0], y : y + inner.shape[1], z : z + inner.shape[2]]
        for x, y, z in itertools.product(range(3), repeat=3)
    ]
    return min(
        float(np.sqrt(np.mean((standardised(np.flip(form, some)) - standardised(window)) ** 2)))
        for form in forms
        for some in axes
        for window in windows
    )


@pytest.mark.parametrize("shape", [(6, 6, 5), (6, 7, 5)])
def test_distances_equal_a_plain_search(shape, monkeypatch):
    monkeypatch.setattr(oriented_distances, "BLOCK_Q", 2)
    monkeypatch.setattr(oriented_distances, "BLOCK_R", 3)
    queries, references = noise(3, shape), noise(4, shape, seed=1)
    expected = [[plain(query, reference) for reference in references] for query in queries]
    np.testing.assert_allclose(distances(queries, references), expected, rtol=1e-4)  # float32


def test_a_turned_and_shifted_copy_is_at_zero():
    reference = noise(1, (8, 8, 6))
    moved = np.roll(0.5 * reference[0] + 3, (1, -1, 1), (0, 1, 2))
    turned = [np.rot90(np.flip(moved, 2), k) for k in range(4)]
    assert distances(np.stack(turned), reference).max() < 5e-3  # float32: 1 - correlation loses half the digits
    assert distances(noise(1, (8, 8, 6), seed=1), reference).min() > 0.8


def test_a_cube_is_turned_about_every_axis():
    reference = noise(1, (8, 8, 8))
    turned = [np.rot90(reference[0], k, axes) for k in range(4) for axes in itertools.combinations(range(3), 2)]
    assert distances(np.stack(turned), reference).max() < 5e-3


def test_a_patch_without_content_resembles_none():
    blank = np.full((2, 8, 8, 6), 7, np.float32)
    blank[1, 3:5, 3, 3] += 100  # two cells
    assert oriented_distances.has_content(np.concatenate([blank, noise(1, (8, 8, 6))])).tolist() == [False, False, True]
    np.testing.assert_allclose(distances(blank, np.concatenate([blank, noise(1, (8, 8, 6))])), UNRELATED, rtol=1e-6)


def test_large_patches_are_compared_by_block_means():
    patch = np.arange(32 * 16 * 40, dtype=np.float64).reshape(32, 16, 40)
    (grid,) = on_grid([patch])
    assert grid.shape == (16, 16, 14) and grid[0, 0, 0] == pytest.approx(patch[:2, :1, :3].mean())
    assert math.prod(oriented_distances.block_sizes((128, 128, 64))) == 8 * 8 * 4


def test_what_has_no_distance_is_refused():
    with pytest.raises(DataError, match="no distance"):
        distances(noise(1, (6, 6, 4)), noise(1, (6, 4, 6)))
    with pytest.raises(DataError, match="one shape"):
        on_grid([np.zeros((4, 4, 4)), np.zeros((4, 4, 6))])
    with pytest.raises(DataError, match="finite"):
        on_grid([np.full((4, 4, 4), np.nan)])
