"""Means over patients and training seeds, with bootstrap intervals and paired tests.

Shapes: P patients, S seeds (the runs of one source), B bootstrap samples.
"""

import statistics
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import wilcoxon

from vesselgan.core.errors import DataError
from vesselgan.metrics.masks import as_finite

MIN_PATIENTS = 5
"""Below it there is no interval and no test: with four patients a two-sided p cannot be below 0.1."""
BOOTSTRAP_SAMPLES = 10_000
LEVEL = 0.95

Summary = dict[str, float | int | list[float] | None]


def describe(values_PS: np.ndarray, *, seed: int) -> Summary:
    """Mean, SD, median and bootstrap interval of one source's scores.

    `sd` is over patients (their means over seeds), `sd_seeds` over seeds (their means over patients), both n - 1 and
    null below two; `median` and `interval` (bootstrap over patients and seeds) are over patients.
    """
    values_PS = _check(values_PS)
    patient_P, seed_S = values_PS.mean(axis=1), values_PS.mean(axis=0)
    return {
        "n": len(patient_P),
        "num_seeds": len(seed_S),
        "mean": float(patient_P.mean()),
        "sd": _sd(patient_P),
        "sd_seeds": _sd(seed_S),
        "median": float(np.median(patient_P)),
        "interval": _interval(_bootstrap_means([values_PS], seed)[0]) if len(patient_P) >= MIN_PATIENTS else None,
    }


def compare(values_PS: np.ndarray, reference_PS: np.ndarray, *, seed: int) -> Summary:
    """The difference to a reference on the same patients, with independent seeds of any number.

    `mean` and `sd` are over patients, of the difference of means over seeds. The bootstrap draws the same patients for
    both sides and seeds for each. `p` is two-sided, of the Wilcoxon signed-rank test over patients, before `holm`.
    """
    values_PS, reference_PS = _check(values_PS), _check(reference_PS)
    if len(values_PS) != len(reference_PS):
        raise DataError(
            f"{len(values_PS)} and {len(reference_PS)} patients: a paired comparison needs the same on both"
        )
    difference_P = values_PS.mean(axis=1) - reference_PS.mean(axis=1)
    is_enough = len(difference_P) >= MIN_PATIENTS
    means = _bootstrap_means([values_PS, reference_PS], seed) if is_enough else None
    return {
        "n": len(difference_P),
        "mean": float(difference_P.mean()),
        "sd": _sd(difference_P),
        "interval": _interval(means[0] - means[1]) if means is not None else None,
        "p": signed_rank(difference_P) if is_enough else None,
    }


def signed_rank(difference_P: np.ndarray) -> float:
    """Two-sided p of the Wilcoxon signed-rank test; zero differences are left out, and without others p is 1."""
    difference_P = as_finite(difference_P, "differences", ndim=1)
    if not np.any(difference_P):
        return 1.0
    return float(wilcoxon(difference_P, zero_method="wilcox").pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values adjusted for their number (Holm 1979); a null stands for no test and does not count."""
    if any(p is not None and not 0 <= p <= 1 for p in p_values):  # a NaN too
        raise DataError(f"p values {list(p_values)}: expected numbers from 0 to 1, or null for no test")
    tests = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tests):
        largest = max(largest, min(1.0, p * (len(tests) - rank)))
        adjusted[index] = largest
    return adjusted


def mean_and_sd(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Returns the mean and standard deviation (n - 1) of the values that are defined; None where they are too few."""
    defined = as_finite([value for value in values if value is not None], "values").tolist()
    mean = statistics.fmean(defined) if defined else None
    return mean, statistics.stdev(defined) if len(defined) > 1 else None


def _check(values_PS: np.ndarray) -> np.ndarray:
    values_PS = as_finite(values_PS, "scores", ndim=2).astype(float)
    if not values_PS.size:
        raise DataError(f"scores of shape {values_PS.shape}: expected at least one patient and one seed")
    return values_PS


def _sd(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _bootstrap_means(sides: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """For each side [P, S] the means [B] of bootstrap samples: the same patients for all sides, seeds for each."""
    rng = np.random.default_rng(seed)
    num_patients = len(sides[0])
    patients_BP = (
        rng.multinomial(num_patients, np.full(num_patients, 1 / num_patients), BOOTSTRAP_SAMPLES) / num_patients
    )
    means = []
    for values_PS in sides:
        num_seeds = values_PS.shape[1]
        seeds_BS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), BOOTSTRAP_SAMPLES) / num_seeds
        means.append(np.einsum("bp,ps,bs->b", patients_BP, values_PS, seeds_BS))
    return means


def _interval(mean_B: np.ndarray) -> list[float]:
    tail = 50 * (1 - LEVEL)
    return [float(edge) for edge in np.percentile(mean_B, [tail, 100 - tail])]
