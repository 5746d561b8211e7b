"""The labels of two sets of patches beside each other: every statistic with distance, interval and floor."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vesselgan.metrics.feature_scores import halves_of
from vesselgan.metrics.jackknife import jackknife_interval, leave_one_out, paired_groups
from vesselgan.metrics.label_statistics import UNITS, LabelStatistics, distance, values_of

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
RADIUS_BIN_MM, RADIUS_MOST_MM = 0.25, 5.0


def compare_labels(
    real: Sequence[LabelStatistics], synthetic: Sequence[LabelStatistics], patients: Sequence[str], seed: int
) -> dict[str, Any]:
    """Statistic -> {unit, real, synthetic, distance, interval, floor}, and `radius_histogram`.

    real and synthetic: as many patches of either; patients: whose each real one is. distance: Wasserstein-1 between
    the two sets, in the statistic's unit; interval: jackknife over patients; floor: see `label_floor`.
    """
    assert len(real) == len(synthetic) == len(patients), (len(real), len(synthetic), len(patients))
    groups = paired_groups(patients, seed)
    found: dict[str, Any] = {}
    for name, unit in UNITS.items():
        whole = distance(values_of(real, name), values_of(synthetic, name))
        found[name] = {
            "unit": unit,
            "real": describe(real, name),
            "synthetic": describe(synthetic, name),
            "distance": whole,
            "interval": None if whole is None else _interval(whole, real, synthetic, name, groups),
            "floor": label_floor(real, synthetic, patients, name, seed),
        }
    found["radius_histogram"] = {
        "bin_mm": RADIUS_BIN_MM,
        "real": histogram(values_of(real, "radius_mm")),
        "synthetic": histogram(values_of(synthetic, "radius_mm")),
    }
    return found


def describe(patches: Sequence[LabelStatistics], name: str) -> dict[str, Any]:
    """n, mean, SD (n - 1) and quantiles of what is defined, and in how many patches nothing is."""
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
    """{n, real, synthetic}: the distance of one half of the patients to the other half, and to as many synthetic
    patches. The distance falls with n, so these two stand side by side. None with one patient."""
    halves = halves_of(patients, seed)
    if halves is None:
        return None
    count = min(len(half) for half in halves)
    source = np.random.default_rng(seed)
    held, other = ([real[i] for i in source.choice(half, count, replace=False)] for half in halves)
    rivals = {"real": other, "synthetic": [synthetic[i] for i in source.choice(len(synthetic), count, replace=False)]}
    held_values = values_of(held, name)
    return {"n": count, **{side: distance(held_values, values_of(rival, name)) for side, rival in rivals.items()}}


def histogram(radius_mm: np.ndarray) -> list[float]:
    """Shares of the centreline voxels by radius, in bins of RADIUS_BIN_MM; the last one holds all larger ones too."""
    edges = np.arange(0, RADIUS_MOST_MM + RADIUS_BIN_MM / 2, RADIUS_BIN_MM)
    counts, _ = np.histogram(np.minimum(radius_mm, np.nextafter(edges[-1], 0)), edges)
    return (counts / max(1, radius_mm.size)).tolist()


def _interval(
    whole: float,
    real: Sequence[LabelStatistics],
    synthetic: Sequence[LabelStatistics],
    name: str,
    groups: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[float] | None:
    def distance_of(real_rows: np.ndarray, synthetic_rows: np.ndarray) -> float:
        kept = values_of([real[i] for i in real_rows], name), values_of([synthetic[i] for i in synthetic_rows], name)
        found = distance(*kept)
        return np.nan if found is None else found

    left = leave_one_out(groups, len(real), distance_of)
    if not np.isfinite(left).all():
        return None
    return jackknife_interval(whole, left)
