"""Comparison of the labels of two sets of patches: every statistic with distance, interval and floor."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.metrics.feature_scores import split_patients
from vesselgan.metrics.jackknife import jackknife_interval, leave_one_out, paired_groups
from vesselgan.metrics.label_statistics import UNITS, LabelStatistics, distance, values_of
from vesselgan.metrics.masks import as_finite

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
RADIUS_BIN_MM, MAX_RADIUS_MM = 0.25, 5.0


def compare_labels(
    real: Sequence[LabelStatistics], synthetic: Sequence[LabelStatistics], patients: Sequence[str], seed: int
) -> dict[str, Any]:
    """Statistic -> {unit, real, synthetic, distance, interval, floor}, and `radius_histogram`.

    real and synthetic: equal numbers of patches; patients: the patient of each real patch. distance: Wasserstein-1
    between the two sets, in the statistic's unit; interval: jackknife over patients; floor: see `label_floor`.
    """
    if not len(real) == len(synthetic) == len(patients):
        raise DataError(
            f"{len(real)} real patches, {len(synthetic)} synthetic ones, {len(patients)} patients: expected one number"
        )
    groups = paired_groups(patients, seed)
    comparison: dict[str, Any] = {}
    for name, unit in UNITS.items():
        estimate = distance(values_of(real, name), values_of(synthetic, name))
        comparison[name] = {
            "unit": unit,
            "real": describe(real, name),
            "synthetic": describe(synthetic, name),
            "distance": estimate,
            "interval": None if estimate is None else _interval(estimate, real, synthetic, name, groups),
            "floor": label_floor(real, synthetic, patients, name, seed),
        }
    comparison["radius_histogram"] = {
        "bin_mm": RADIUS_BIN_MM,
        "real": histogram(values_of(real, "radius_mm")),
        "synthetic": histogram(values_of(synthetic, "radius_mm")),
    }
    return comparison


def describe(patches: Sequence[LabelStatistics], name: str) -> dict[str, Any]:
    """n, mean, SD (n - 1) and quantiles of the defined values, and the number of patches without one."""
    values = values_of(patches, name)
    undefined = sum(np.size(value) == 0 or value is None for value in (getattr(patch, name) for patch in patches))
    if not values.size:
        return {"n": 0, "mean": None, "sd": None, "quantiles": None, "undefined_patches": undefined}
    return {
        "n": int(values.size),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if values.size > 1 else None,
        "quantiles": dict(zip(map(str, QUANTILES), np.quantile(values, QUANTILES).tolist(), strict=True)),
        "undefined_patches": undefined,
    }


def label_floor(
    real: Sequence[LabelStatistics],
    synthetic: Sequence[LabelStatistics],
    patients: Sequence[str],
    name: str,
    seed: int,
) -> dict[str, Any] | None:
    """{n, real, synthetic}: distances of one half of the patients to the other half and to as many synthetic patches.

    The distance falls with n, so only these two are comparable. None with one patient.
    """
    halves = split_patients(patients, seed)
    if halves is None:
        return None
    count = min(len(half) for half in halves)
    rng = np.random.default_rng(seed)
    reference, other = ([real[i] for i in rng.choice(half, count, replace=False)] for half in halves)
    sample = [synthetic[i] for i in rng.choice(len(synthetic), count, replace=False)]
    values = values_of(reference, name)
    return {
        "n": count,
        "real": distance(values, values_of(other, name)),
        "synthetic": distance(values, values_of(sample, name)),
    }


def histogram(radius_mm: np.ndarray) -> list[float]:
    """Fractions of centreline voxels by radius, in bins of RADIUS_BIN_MM; the last bin holds all larger radii."""
    radius_mm = as_finite(radius_mm, "radius_mm", ndim=1)
    edges = np.arange(0, MAX_RADIUS_MM + RADIUS_BIN_MM / 2, RADIUS_BIN_MM)
    counts, _ = np.histogram(np.minimum(radius_mm, np.nextafter(edges[-1], 0)), edges)
    return (counts / max(1, radius_mm.size)).tolist()


def _interval(
    estimate: float,
    real: Sequence[LabelStatistics],
    synthetic: Sequence[LabelStatistics],
    name: str,
    groups: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[float] | None:
    def distance_of(real_rows: np.ndarray, synthetic_rows: np.ndarray) -> float:
        real_values = values_of([real[i] for i in real_rows], name)
        value = distance(real_values, values_of([synthetic[i] for i in synthetic_rows], name))
        return np.nan if value is None else value

    estimates = leave_one_out(groups, len(real), distance_of)
    if not np.isfinite(estimates).all():
        return None
    return jackknife_interval(estimate, estimates)
