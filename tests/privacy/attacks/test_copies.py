"""The rule that calls patches copies: its chances by paper and pencil, its error rates and power by counting."""

import math

import numpy as np
import pytest
from scipy.stats import betabinom, binom

from vesselgan.metrics.nearest_neighbours import standardise
from vesselgan.metrics.statistics import MIN_PATIENTS
from vesselgan.privacy.attacks import copies

PEOPLE = 6


def people(count: int) -> list[str]:
    return [f"sub-{i % PEOPLE}" for i in range(count)]


def draw(source: np.random.Generator, n: int, m: int, share: float = 0.0) -> copies.Judgement:
    """Distances alike on both sides, but for copies at 0.1 among the generated ones."""
    made, held_out = source.uniform(0.3, 1.4, n), source.uniform(0.3, 1.4, m)
    made[source.random(n) < share] = 0.1
    return copies.judge(made, held_out, people(m))


def test_chances_are_those_of_paper_and_pencil() -> None:
    # Two generated, one held out: of three equally likely places of the latter, two have one below, one has two.
    assert copies.chances_of(2, 1) == pytest.approx([2 / 3, 1 / 3])
    assert copies.chances_of(1, 9) == pytest.approx([1 / 10])
    # Given the threshold the count is binomial with a chance that is Beta(1, m): scipy's beta-binomial.
    assert copies.chances_of(1600, 300)[:40] == pytest.approx(betabinom.sf(np.arange(40), 1600, 1, 300), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(1600, 100), (1000, 850)])
def test_false_alarms_are_as_frequent_as_said(n: int, m: int) -> None:
    source, rounds = np.random.default_rng(0), 400
    found = [draw(source, n, m) for _ in range(rounds)]
    size = copies.chances_of(n, m)[copies.least_count(n, m) - 1]
    assert size <= copies.SIGNIFICANCE < copies.chances_of(n, m)[copies.least_count(n, m) - 2]
    alarms = np.mean([judgement.verdict == copies.CLOSED for judgement in found])
    assert abs(alarms - size) < 5 * math.sqrt(size * (1 - size) / rounds)
    if m == 100:
        naive = np.mean([binom.sf(j.below - 1, n, 1 / (m + 1)) <= copies.SIGNIFICANCE for j in found])
        assert naive > 0.15


@pytest.mark.parametrize(("n", "m"), [(1000, 850), (500, 300)])
def test_the_power_is_as_said(n: int, m: int) -> None:
    source, rounds = np.random.default_rng(1), 200
    found = [draw(source, n, m, copies.SHARE) for _ in range(rounds)]
    power = found[0].power
    # Exact: the count is binomial with a chance of 0.01 and, of the rest, what chance puts below the threshold.
    grid = (np.arange(2000) + 0.5) / 2000
    chance = copies.SHARE + (1 - copies.SHARE) * (1 - (1 - grid) ** (1 / m))
    exact = binom.sf(found[0].least_count - 1, n, chance).mean()
    seen = np.mean([judgement.verdict == copies.CLOSED for judgement in found])
    assert power <= exact and abs(seen - exact) < 5 * math.sqrt(exact * (1 - exact) / rounds)
    assert (power >= copies.LEAST_POWER) == (m > 300)


@pytest.mark.parametrize("n", [299, 1000, 10_000])
def test_the_held_out_patches_asked_for_suffice(n: int) -> None:
    needed = copies.held_out_needed(n)
    assert copies.power_of(n, copies.least_count(n, needed)) >= copies.LEAST_POWER
    assert copies.power_of(n, copies.least_count(n, needed - 1)) < copies.LEAST_POWER
    made, held_out = np.full(n, 1.0), np.full(needed, 0.5)
    assert copies.judge(made, held_out, people(needed)).verdict == copies.OPEN
    fewer = copies.judge(made, held_out[1:], people(needed - 1))
    assert fewer.verdict == copies.UNDECIDED and str(needed) in fewer.reason


def test_too_few_synthetic_patches_cannot_conclude() -> None:
    # 0.99^298 = 0.0500..., 0.99^299 = 0.0495: one copy among 299 with probability 0.95.
    assert copies.generated_needed() == 299 and copies.held_out_needed(298) is None
    found = copies.judge(np.full(298, 1.0), np.full(100_000, 0.5), people(100_000))
    assert found.verdict == copies.UNDECIDED and "299" in found.reason


def test_few_people_and_leaked_patches_cannot_conclude() -> None:
    made, held_out = np.full(1000, 1.0), np.full(900, 0.5)
    two = copies.judge(made, held_out, ["sub-1", "sub-2"] * 450)
    assert two.verdict == copies.UNDECIDED and f"{MIN_PATIENTS}" in two.reason
    held_out[17] = 0.004
    assert copies.judge(made, held_out, people(900)).verdict == copies.UNDECIDED


def test_one_verbatim_copy_closes_the_gate() -> None:
    made, held_out = np.full(1000, 1.0), np.full(900, 0.5)
    made[3] = 0.2
    one = copies.judge(made, held_out, people(900))
    assert (one.verdict, one.below) == (copies.OPEN, 1) and one.chance == pytest.approx(1000 / 1900)
    made[3] = 0.01
    assert copies.judge(made, held_out, people(900)).verdict == copies.CLOSED
    # Also where nothing else could be concluded.
    assert copies.judge(made[:10], held_out[:2], ["sub-1"] * 2).verdict == copies.CLOSED


def test_the_share_has_its_clopper_pearson_bound() -> None:
    made, held_out = np.full(1000, 1.0), np.full(900, 0.5)
    assert copies.judge(made, held_out, people(900)).share_at_most == pytest.approx(1 - 0.05 ** (1 / 1000))
    made[:4] = 0.4
    bound = copies.judge(made, held_out, people(900)).share_at_most
    assert binom.cdf(4, 1000, bound) == pytest.approx(0.05)


def test_the_most_noise_lies_at_the_threshold() -> None:
    found = copies.judge(np.full(1000, 1.0), np.full(900, 0.6), people(900))
    source = np.random.default_rng(0)
    patch, added = source.normal(size=(2, 64, 64, 64))
    distance = standardise(patch + found.most_noise * added) - standardise(patch)
    assert np.sqrt(np.mean(distance**2)) == pytest.approx(0.6, abs=5e-3)  # 262,144 voxels
    assert copies.judge(np.full(1000, 1.5), np.full(900, 1.45), people(900)).most_noise is None


def test_a_person_unlike_the_others_is_told() -> None:
    source = np.random.default_rng(0)
    held_out = source.uniform(0.5, 1.0, 600)
    assert not copies.odd_one_out(held_out, people(600))
    near = held_out.copy()
    near[::PEOPLE] -= 0.2  # all patches of sub-0
    assert copies.odd_one_out(near, people(600))
    assert not copies.odd_one_out(near, ["sub-0"] * 600)
    rounds = [copies.odd_one_out(source.uniform(size=600), people(600)) for _ in range(400)]
    assert np.mean(rounds) < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 400)
