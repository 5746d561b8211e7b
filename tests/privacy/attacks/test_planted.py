"""Planted copies: what they are, and how the share found becomes a power."""

import numpy as np
import pytest
from scipy.stats import binom

from vesselgan.metrics.oriented_distances import distances
from vesselgan.privacy.attacks import planted
from vesselgan.privacy.attacks.copies import find_copies

PATCH = np.random.default_rng(0).normal(size=(8, 8, 6)).astype(np.float32)
MOVED = {"axes": (0, 1, 2), "max_shift": (1, 1, 1)}


@pytest.mark.parametrize("kind", [*planted.IMAGE_KINDS, planted.LABEL_ONLY])
def test_planted_copies_are_near_and_not_equal(kind):
    rng = np.random.default_rng(1)
    copies = np.stack([planted.plant(kind, PATCH, rng, **MOVED) for _ in range(20)])
    assert copies.shape == (20, *PATCH.shape) and not any(np.array_equal(copy, PATCH) for copy in copies)
    assert distances(copies, PATCH[None]).max() < (0.3 if kind in ("noisy", "all_three") else 5e-3)


def test_a_planted_label_stays_a_label():
    label = (PATCH > 1).astype(np.uint8)
    copy = planted.plant(planted.LABEL_ONLY, label, np.random.default_rng(2), **MOVED)
    assert set(np.unique(copy).tolist()) == {0, 1}


def test_the_share_found_lowers_the_power():
    test = find_copies(np.full(2000, 1.0), np.full(800, 0.8), [f"p{i % 12}" for i in range(800)], significance=0.05)
    found = planted.found_of("noisy", {"image": np.array([0.1] * 60 + [0.9] * 40)}, {"image": test})
    assert (found.found, found.planted, found.share_found) == (60, 100, 0.6)
    assert found.interval[0] < 0.6 < found.interval[1]
    assert found.power["0.01"] == pytest.approx(binom.sf(test.least_count - 1, 2000, 0.006))
    nothing = planted.found_of("noisy", {"image": np.empty(0)}, {"image": test})
    assert nothing.share_found == 0 and nothing.power["0.01"] == 0 and nothing.interval == [0.0, 1.0]


def test_a_label_is_found_where_it_is_found_best():
    test = find_copies(np.full(2000, 1.0), np.full(800, 0.8), ["p"] * 800, significance=0.05)
    values = {"label": np.full(100, 0.9), "centreline": np.full(100, 0.1)}
    found = planted.found_of(planted.LABEL_ONLY, values, {"label": test, "centreline": test})
    assert (found.space, found.found) == ("centreline", 100)
