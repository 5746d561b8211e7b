import numpy as np
import pytest
from scipy import stats

from vesselgan.metrics.statistics import compare, describe, holm, signed_rank

FIVE = np.array([[0.80], [0.82], [0.90], [0.86], [0.87]])


def test_mean_spread_and_median_by_hand():
    found = describe(np.array([[1.0, 3.0], [4.0, 4.0], [6.0, 12.0]]), seed=0)
    # Patients: 2, 4, 9, mean 5, deviations -3 -1 4, squares 26 over 2. Seeds: 11/3 and 19/3, 8/3 apart.
    assert (found["n"], found["num_seeds"]) == (3, 2)
    assert (found["mean"], found["median"]) == (5.0, 4.0)
    assert found["sd"] == pytest.approx(13**0.5)
    assert found["sd_seeds"] == pytest.approx((8 / 3) / 2**0.5)
    assert found["interval"] is None


def test_no_interval_and_no_test_under_five_patients():
    assert describe(FIVE[:4], seed=0)["interval"] is None
    assert describe(FIVE, seed=0)["interval"] is not None
    few, enough = (compare(FIVE[:n] + 0.1, FIVE[:n], seed=0) for n in (4, 5))
    assert (few["interval"], few["p"]) == (None, None)
    assert enough["p"] == pytest.approx(2 / 2**5)  # all five of one sign: 1 of 32 either way
    assert describe(FIVE[:1], seed=0) | {"mean": 0, "median": 0} == {
        "n": 1, "num_seeds": 1, "mean": 0, "sd": None, "sd_seeds": None, "median": 0, "interval": None
    }  # fmt: skip


def test_one_seeds_interval_is_scipys_bootstrap():
    values = np.random.default_rng(1).gamma(2.0, size=(13, 1))
    expected = stats.bootstrap(
        (values[:, 0],), np.mean, n_resamples=40_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    # 10,000 draws leave about 0.02 of a standard error (here 0.3) in a percentile's place: 0.03 is four times that.
    assert describe(values, seed=0)["interval"] == pytest.approx(list(expected), abs=0.03)


def test_the_bootstrap_draws_patients_and_seeds():
    rng = np.random.default_rng(2)
    patient, seed = rng.normal(size=20), 3 * rng.normal(size=5)
    low, high = describe(patient[:, None] + seed[None], seed=0)["interval"]
    # Additive, so the two draws' variances add; the percentiles of a sum of many are nearly normal's.
    expected = 2 * 1.96 * np.sqrt(patient.var() / 20 + seed.var() / 5)
    assert high - low == pytest.approx(expected, rel=0.06)
    alone = describe(patient[:, None] + np.full((1, 5), seed.mean()), seed=0)["interval"]
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 * np.sqrt(patient.var() / 20), rel=0.06)


def test_the_bootstrap_is_a_function_of_its_seed():
    values = np.random.default_rng(1).gamma(2.0, size=(13, 3))
    assert describe(values, seed=3) == describe(values, seed=3)
    assert describe(values, seed=3)["interval"] != describe(values, seed=4)["interval"]


def test_a_paired_comparison_forgets_what_patients_share():
    patient = np.linspace(0, 100, 6)[:, None]
    found = compare(patient + np.array([[1.0, 3.0]]), patient + np.array([[0.0, 0.5, 1.0]]), seed=0)
    # Every patient gains 2 - 0.5; what is left to chance are the seeds, 1 to 3 less 0 to 1.
    assert (found["n"], found["mean"]) == (6, 1.5)
    assert found["sd"] == pytest.approx(0.0, abs=1e-12)  # rounding of sums near 100
    assert 0.0 <= found["interval"][0] < 1.5 < found["interval"][1] <= 3.0


def test_the_signed_rank_test_by_hand():
    # Ranks 1 to 5 of 0.1 .. 0.5, the smallest negative: W = 1. Sums of 0 and 1 are 2 of 32 ways; two-sided 4 / 32.
    assert signed_rank(np.array([-0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(4 / 32)
    assert signed_rank(np.zeros(7)) == 1.0
    # A patient without a difference is left out.
    assert signed_rank(np.array([0.0, -0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(4 / 32)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.5; never below the one before.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.02, None, 0.9]) == [0.04, None, 0.9]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([None, None]) == [None, None] and holm([]) == []
