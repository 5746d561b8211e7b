"""How sure a score is: the jackknife over patients."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from vesselgan.metrics.statistics import LEAST_PATIENTS


def jackknife_interval(
    estimate: float,
    leave_one_out: Sequence[float],
    *,
    most: float = math.inf,
    confidence: float = 0.95,
) -> list[float] | None:
    """[low, high]: estimate -+ t * SE from the estimates that each leave one of G groups out; None below
    LEAST_PATIENTS groups, as for segmentation: from two the interval would be as good as anything.

    SE^2 = (G - 1) / G * sum (e_g - mean)^2 (Efron and Stein 1981), t with G - 1 degrees of freedom. Leaving out, unlike
    drawing with replacement, puts no sample twice into a set, which would bias distances of distributions. Cut at 0
    and at `most`, beyond which no score lies.
    """
    values = np.asarray(leave_one_out, dtype=np.float64)
    count = len(values)
    if count < LEAST_PATIENTS:
        return None
    error = np.sqrt((count - 1) / count * np.square(values - values.mean()).sum())
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * error)
    return [max(0.0, estimate - half), min(most, estimate + half)]


def paired_groups(patient_N: Sequence[str], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per patient (the rows of the real set that are this patient's, as many rows of the generated set).

    Generated samples have no patient, so they are dealt out at random, each to one group: both sides keep equal n
    when a group is left out, and both sides' spread shows.
    """
    patients = np.asarray(patient_N)
    dealt = np.random.default_rng(seed).permutation(len(patients))
    groups, start = [], 0
    for patient in np.unique(patients):
        rows = np.flatnonzero(patients == patient)
        groups.append((rows, dealt[start : start + len(rows)]))
        start += len(rows)
    return groups


def leave_one_out(
    groups: Sequence[tuple[np.ndarray, np.ndarray]], count: int, score: Callable[[np.ndarray, np.ndarray], float]
) -> list[float]:
    """score(real rows, generated rows) without each group in turn; empty where fewer than two samples would be left."""
    everyone = np.arange(count)
    if any(count - len(real) < 2 for real, _ in groups):
        return []
    return [score(np.delete(everyone, real), np.delete(everyone, made)) for real, made in groups]
