"""Scores of two sets of features: FID, PRD, their intervals over patients, and the floor (real against real).

N samples, F features, S seeds
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.metrics.diversity import mean_nearest_distance, mean_pairwise_distance
from vesselgan.metrics.frechet import frechet_distance, rank_note
from vesselgan.metrics.jackknife import jackknife_interval, leave_one_out, paired_groups
from vesselgan.metrics.prd import curve_of_clusters, joint_clusters, prd_auc

Clusters = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Features:
    """One set: features [N, F] and the patient of each row (real sets only)."""

    values_NF: np.ndarray
    patient_N: tuple[str, ...]

    def rows(self, chosen: np.ndarray) -> "Features":
        return Features(self.values_NF[chosen], tuple(self.patient_N[i] for i in chosen))


@dataclass(frozen=True)
class FeatureScoreSettings:
    """Settings of the scores; scores of different settings are not comparable."""

    num_clusters: int
    num_runs: int
    num_angles: int
    seeds: tuple[int, ...]
    """Of the samples of n patches, the clusterings and the split into halves; scores are means over the seeds."""
    max_patches: int | None


def score_features(real: Features, generated: Features, settings: FeatureScoreSettings) -> dict[str, Any]:
    """The scores at n = size of the smaller set (or max_patches), sampled without replacement by each seed.

    {"n", "scores": {fid, prd_auc: {mean, sd, by_seed, interval}}, "curve", "pairwise_distance" and "nearest_distance"
    (see vesselgan.metrics.diversity), "floor", "notes"}. Curve, distances and intervals are those of the first seed;
    the interval is the jackknife over patients around that seed's value, with its clusters.
    """
    count = min(len(real.values_NF), len(generated.values_NF), settings.max_patches or len(real.values_NF))
    if count < 2:
        raise DataError(
            f"{len(real.values_NF)} real and {len(generated.values_NF)} synthetic patches: scores of distributions "
            "need two or more on either side; generate more, or choose another image.reference"
        )
    scores: dict[str, list[float]] = {"fid": [], "prd_auc": []}
    for seed in settings.seeds:
        one, other = sample_rows(real, count, seed), sample_rows(generated, count, seed)
        fid, auc, clusters = _score(one.values_NF, other.values_NF, settings, seed)
        scores["fid"].append(fid)
        scores["prd_auc"].append(auc)
        if seed == settings.seeds[0]:
            intervals, first = _intervals(one, other, clusters, settings, (fid, auc)), (one, other, clusters)
    one, other, clusters = first
    curve = curve_of_clusters(*clusters, num_clusters=settings.num_clusters, num_angles=settings.num_angles)
    return {
        "n": count,
        "num_features": int(real.values_NF.shape[1]),
        "num_patients": len(set(one.patient_N)),
        "scores": {name: {**summarise_seeds(values), "interval": intervals[name]} for name, values in scores.items()},
        "curve": {"precision": curve[0].tolist(), "recall": curve[1].tolist()},
        "pairwise_distance": {
            "real": mean_pairwise_distance(one.values_NF),
            "synthetic": mean_pairwise_distance(other.values_NF),
        },
        "nearest_distance": mean_nearest_distance(other.values_NF, one.values_NF),
        "floor": floor(real, generated, settings, count),
        "notes": [note] if (note := rank_note(*one.values_NF.shape)) else [],
    }


def floor(real: Features, generated: Features, settings: FeatureScoreSettings, max_count: int) -> dict[str, Any] | None:
    """The scores of a perfect generator (one half of the patients against the other) and of the synthetic set.

    Both against the same half and at the same n, smaller than that of the main scores: FID falls with n, so only these
    two are comparable. None with one patient.
    """
    values: dict[str, dict[str, list[float]]] = {"real": {"fid": [], "prd_auc": [], "nearest": []}}
    values["synthetic"] = {name: [] for name in values["real"]}
    counts = []
    for seed in settings.seeds:
        halves = split_patients(real.patient_N, seed)
        if halves is None:
            return None
        count = min(*(len(half) for half in halves), max_count, len(generated.values_NF))
        if count < 2:
            return None
        reference, other = (sample_rows(real.rows(half), count, seed).values_NF for half in halves)
        candidates = {"real": other, "synthetic": sample_rows(generated, count, seed).values_NF}
        counts.append(count)
        for name, candidate in candidates.items():
            fid, auc, _ = _score(reference, candidate, settings, seed)
            values[name]["fid"].append(fid)
            values[name]["prd_auc"].append(auc)
            values[name]["nearest"].append(mean_nearest_distance(candidate, reference))
    summaries = {name: {m: summarise_seeds(v) for m, v in scores.items()} for name, scores in values.items()}
    return {"n": counts, **summaries}


def split_patients(patient_N: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of one random half of the patients and of the other half; None with one patient."""
    patients = np.random.default_rng(seed).permutation(np.unique(patient_N))
    if len(patients) < 2:
        return None
    is_first_N = np.isin(patient_N, patients[: len(patients) // 2])
    return np.flatnonzero(is_first_N), np.flatnonzero(~is_first_N)


def sample_rows(features: Features, count: int, seed: int) -> Features:
    """`count` random rows without replacement, in their order."""
    chosen = np.random.default_rng(seed).choice(len(features.values_NF), count, replace=False)
    return features.rows(np.sort(chosen))


def summarise_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over the seeds, SD (n - 1; null for one seed), and the values."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": deviation, "by_seed": [float(value) for value in values]}


def _score(
    real_NF: np.ndarray, generated_NF: np.ndarray, settings: FeatureScoreSettings, seed: int
) -> tuple[float, float, Clusters]:
    """(FID, PRD-AUC, the clusters of the curve)."""
    clusters = joint_clusters(
        real_NF, generated_NF, num_clusters=settings.num_clusters, num_runs=settings.num_runs, seed=seed
    )
    return _quiet_distance(real_NF, generated_NF), _area(clusters, settings), clusters


def _area(clusters: Clusters, settings: FeatureScoreSettings) -> float:
    return prd_auc(*curve_of_clusters(*clusters, num_clusters=settings.num_clusters, num_angles=settings.num_angles))


def _intervals(
    real: Features,
    generated: Features,
    clusters: Clusters,
    settings: FeatureScoreSettings,
    estimates: tuple[float, float],
) -> dict[str, list[float] | None]:
    """95 % jackknife intervals; PRD keeps the clusters of the whole sets."""
    groups, count = paired_groups(real.patient_N, settings.seeds[0]), len(real.values_NF)

    def distance_of(real_rows: np.ndarray, generated_rows: np.ndarray) -> float:
        return _quiet_distance(real.values_NF[real_rows], generated.values_NF[generated_rows])

    def area_of(real_rows: np.ndarray, generated_rows: np.ndarray) -> float:
        return _area((clusters[0][:, real_rows], clusters[1][:, generated_rows]), settings)

    return {
        "fid": jackknife_interval(estimates[0], leave_one_out(groups, count, distance_of)),
        "prd_auc": jackknife_interval(estimates[1], leave_one_out(groups, count, area_of), upper_limit=1.0),
    }


def _quiet_distance(real_NF: np.ndarray, generated_NF: np.ndarray) -> float:
    """The Frechet distance without its warning, which `score_features` returns as a note."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return frechet_distance(real_NF, generated_NF)
