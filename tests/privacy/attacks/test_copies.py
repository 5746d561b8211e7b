"""The rule that calls patches copies: its chances by paper and pencil, its error rates and power by counting."""

import math

import numpy as np
import pytest
from scipy.stats import betabinom, binom

from vesselgan.core.errors import DataError
from vesselgan.privacy.attacks import copies

PEOPLE, SIGNIFICANCE = 6, 0.05


def people(count: int) -> list[str]:
    return [f"sub-{i % PEOPLE}" for i in range(count)]


def find(made: np.ndarray, held_out: np.ndarray) -> copies.CopyTest:
    return copies.find_copies(made, held_out, people(len(held_out)), significance=SIGNIFICANCE)


def draw(source: np.random.Generator, n: int, m: int, share: float = 0.0) -> copies.CopyTest:
    """Values alike on both sides, but for copies at 0.1 among the generated ones."""
    made, held_out = source.uniform(0.3, 1.4, n), source.uniform(0.3, 1.4, m)
    made[source.random(n) < share] = 0.1
    return find(made, held_out)


def test_chances_are_those_of_paper_and_pencil():
    # Two generated, one held out: of three equally likely places of the latter, two have one below, one has two.
    assert copies.chances_of(2, 1) == pytest.approx([2 / 3, 1 / 3])
    assert copies.chances_of(1, 9) == pytest.approx([1 / 10])
    # Given the threshold the count is binomial with a chance that is Beta(1, m): scipy's beta-binomial.
    assert copies.chances_of(1600, 300)[:40] == pytest.approx(betabinom.sf(np.arange(40), 1600, 1, 300), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(1600, 100), (1000, 850)])
def test_false_alarms_are_as_frequent_as_said(n, m):
    source, rounds = np.random.default_rng(0), 400
    found = [draw(source, n, m) for _ in range(rounds)]
    least = copies.least_count(n, m, SIGNIFICANCE)
    size = copies.chances_of(n, m)[least - 1]
    assert size <= SIGNIFICANCE < copies.chances_of(n, m)[least - 2]
    alarms = np.mean([test.finds for test in found])
    assert abs(alarms - size) < 5 * math.sqrt(size * (1 - size) / rounds)
    if m == 100:
        naive = np.mean([binom.sf(test.below - 1, n, 1 / (m + 1)) <= SIGNIFICANCE for test in found])
        assert naive > 0.15


@pytest.mark.parametrize(("n", "m"), [(1000, 850), (500, 300)])
def test_the_power_is_as_said(n, m):
    source, rounds = np.random.default_rng(1), 200
    found = [draw(source, n, m, copies.SHARE) for _ in range(rounds)]
    power = found[0].power(copies.SHARE)
    # Exact: the count is binomial with a chance of 0.01 and, of the rest, what chance puts below the threshold.
    grid = (np.arange(2000) + 0.5) / 2000
    chance = copies.SHARE + (1 - copies.SHARE) * (1 - (1 - grid) ** (1 / m))
    exact = binom.sf(found[0].least_count - 1, n, chance).mean()
    seen = np.mean([test.finds for test in found])
    assert power <= exact and abs(seen - exact) < 5 * math.sqrt(exact * (1 - exact) / rounds)
    assert (power >= copies.LEAST_POWER) == (m > 300)


@pytest.mark.parametrize("n", [299, 1000, 10_000])
def test_the_held_out_patches_asked_for_suffice(n):
    needed = copies.held_out_needed(n, copies.SHARE, SIGNIFICANCE)
    powers = [find(np.full(n, 1.0), np.full(m, 0.5)).power(copies.SHARE) for m in (needed, needed - 1)]
    assert powers[0] >= copies.LEAST_POWER > powers[1]


def test_so_many_synthetic_patches_are_needed():
    # 0.99^298 = 0.0500..., 0.99^299 = 0.0495: one copy among 299 with probability 0.95.
    assert copies.generated_needed(copies.SHARE) == 299
    assert copies.held_out_needed(298, copies.SHARE, SIGNIFICANCE) is None


def test_the_share_has_its_clopper_pearson_bound():
    made, held_out = np.full(1000, 1.0), np.full(900, 0.5)
    assert find(made, held_out).share_at_most == pytest.approx(1 - 0.05 ** (1 / 1000))
    made[:4] = 0.4
    assert binom.cdf(4, 1000, find(made, held_out).share_at_most) == pytest.approx(0.05)


def test_no_patch_on_a_side_finds_nothing():
    for made, held_out in ((np.empty(0), np.ones(3)), (np.ones(3), np.empty(0))):
        test = find(made, held_out)
        assert not test.finds and test.power(1.0) == 0 and test.share_at_most == 1
    with pytest.raises(DataError, match="values >= 0"):
        find(np.array([-0.1]), np.ones(3))


def test_a_person_unlike_the_others_is_told():
    source = np.random.default_rng(0)
    held_out = source.uniform(0.5, 1.0, 600)
    assert not copies.odd_one_out(held_out, people(600), SIGNIFICANCE)
    near = held_out.copy()
    near[::PEOPLE] -= 0.2  # all patches of sub-0
    assert copies.odd_one_out(near, people(600), SIGNIFICANCE)
    assert not copies.odd_one_out(near, ["sub-0"] * 600, SIGNIFICANCE)
    rounds = [copies.odd_one_out(source.uniform(size=600), people(600), SIGNIFICANCE) for _ in range(400)]
    assert np.mean(rounds) < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 400)
