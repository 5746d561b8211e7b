"""Confidence intervals of scores: the jackknife over patients."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from vesselgan.metrics.masks import as_finite
from vesselgan.metrics.statistics import MIN_PATIENTS


def jackknife_interval(
    estimate: float, leave_one_out: Sequence[float], *, upper_limit: float = math.inf
) -> list[float] | None:
    """The 95 % interval, estimate -+ t * SE from the estimates without each of G groups; None below MIN_PATIENTS ones.

    SE^2 = (G - 1) / G * sum (e_g - mean)^2 (Efron and Stein 1981), t with G - 1 degrees of freedom. The bootstrap would
    put samples twice into a set, which biases distances of distributions. Clipped to 0 .. upper_limit.
    """
    as_finite(estimate, "estimate", ndim=0)
    values = as_finite(leave_one_out, "leave_one_out", ndim=1).astype(np.float64)
    count = len(values)
    if count < MIN_PATIENTS:
        return None
    error = np.sqrt((count - 1) / count * np.square(values - values.mean()).sum())
    half_width = float(stats.t.ppf(0.975, count - 1) * error)
    return [max(0.0, estimate - half_width), min(upper_limit, estimate + half_width)]


def paired_groups(patient_N: Sequence[str], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per patient (this patient's rows of the real set, as many rows of the generated set).

    Generated samples have no patient, so each is assigned to one group at random: both sides keep equal n when a group
    is left out, and the variance of both enters.
    """
    patients = np.asarray(patient_N)
    shuffled = np.random.default_rng(seed).permutation(len(patients))
    groups, start = [], 0
    for patient in np.unique(patients):
        rows = np.flatnonzero(patients == patient)
        groups.append((rows, shuffled[start : start + len(rows)]))
        start += len(rows)
    return groups


def leave_one_out(
    groups: Sequence[tuple[np.ndarray, np.ndarray]], count: int, score: Callable[[np.ndarray, np.ndarray], float]
) -> list[float]:
    """score(real rows, generated rows) without each of the groups; empty if fewer than two samples would be left."""
    rows = np.arange(count)
    if any(count - len(real) < 2 for real, _ in groups):
        return []
    return [score(np.delete(rows, real), np.delete(rows, generated)) for real, generated in groups]
