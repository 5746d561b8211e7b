"""Precision and recall of distributions (Sajjadi 2018)."""

# R runs, N samples, F features, K clusters, A angles

import numpy as np

from vesselgan.core.errors import DataError, UsageError
from vesselgan.metrics.frechet import as_features
from vesselgan.metrics.masks import as_finite

EPSILON = 1e-6  # keeps the slopes away from 0 and infinity, as in the original
NUM_STARTS = 10


def prd_curve(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    num_clusters: int,
    num_angles: int = 1001,
    num_runs: int = 10,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(precision [A], recall [A]) of features [N, F], by increasing angle; means over `num_runs` clusterings.

    Precision: the fraction of `generated` that resembles `real`; recall: the fraction of `real` covered by `generated`.
    num_clusters: 20 in the original, 10 in the code of Subramaniam 2022. Repeated calls give the same bytes on one
    machine. DataError for sets of different sizes, on which the curve depends, and for fewer samples than clusters.
    """
    real_RN, generated_RN = joint_clusters(real, generated, num_clusters=num_clusters, num_runs=num_runs, seed=seed)
    return curve_of_clusters(real_RN, generated_RN, num_clusters=num_clusters, num_angles=num_angles)


def prd_auc(precision: np.ndarray, recall: np.ndarray) -> float:
    """The area under a curve of `prd_curve`, by trapezoids in the order of its angles; 1 for identical sets.

    Recall decreases monotonically with the angle. Sorting by recall would order points of equal recall arbitrarily, and
    identical sets would miss 1. DataError for a curve in another order.
    """
    precision, recall = (
        as_finite(curve, name).astype(np.float64) for curve, name in ((precision, "precision"), (recall, "recall"))
    )
    if precision.shape != recall.shape or precision.ndim != 1 or len(precision) < 2:
        raise DataError(f"precision {precision.shape} and recall {recall.shape}: expected two curves of one length")
    steps = np.diff(recall)
    # 1e-12: rounding of the means over runs.
    if not (np.all(steps <= 1e-12) or np.all(steps >= -1e-12)):
        raise DataError("the curve is not in the order of its angles: recall goes both up and down")
    return abs(float(np.trapezoid(precision, recall)))


def joint_clusters(
    real: np.ndarray, generated: np.ndarray, *, num_clusters: int, num_runs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster indices int32 [R, N] of both sets, clustered jointly in every run; errors as in `prd_curve`."""
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    if num_runs < 1 or num_clusters < 1:
        raise UsageError(f"num_runs={num_runs}, num_clusters={num_clusters}: each must be 1 or more")
    real, generated = as_features(real, "real"), as_features(generated, "generated")
    if real.shape != generated.shape:
        raise DataError(
            f"real features {real.shape}, generated {generated.shape}: precision and recall depend on the numbers of "
            "samples; take equally many of both sets"
        )
    if 2 * len(real) < num_clusters:
        raise DataError(f"{2 * len(real)} samples in all for num_clusters={num_clusters}; take more patches")
    joint = np.concatenate([real, generated])
    labels = np.empty((num_runs, len(joint)), np.int32)
    # One thread: sums over several threads come in any order, and their last digit could change the best start.
    with threadpool_limits(limits=1):
        for run in range(num_runs):
            state = int(np.random.SeedSequence([seed, run]).generate_state(1)[0])
            kmeans = MiniBatchKMeans(n_clusters=num_clusters, n_init=NUM_STARTS, random_state=state)
            labels[run] = kmeans.fit_predict(joint)
    return labels[:, : len(real)], labels[:, len(real) :]


def curve_of_clusters(
    real_RN: np.ndarray, generated_RN: np.ndarray, *, num_clusters: int, num_angles: int = 1001
) -> tuple[np.ndarray, np.ndarray]:
    """(precision [A], recall [A]) from the samples' clusters (Sajjadi 2018), means over runs."""
    if num_angles < 2:
        raise UsageError(f"num_angles={num_angles}: a curve needs 2 or more")
    for clusters_RN in (real_RN, generated_RN):
        if np.ndim(clusters_RN) != 2 or not np.size(clusters_RN) or not 0 <= np.min(clusters_RN) <= np.max(clusters_RN):
            raise DataError(f"clusters of shape {np.shape(clusters_RN)}: expected indices [runs, samples] from 0 on")
        if np.max(clusters_RN) >= num_clusters:
            raise DataError(f"cluster {np.max(clusters_RN)} of num_clusters={num_clusters}: they are counted from 0")
    slope_A = np.tan(np.linspace(EPSILON, np.pi / 2 - EPSILON, num_angles))
    precisions, recalls = [], []
    for real_N, generated_N in zip(real_RN, generated_RN, strict=True):
        real_K = np.bincount(real_N, minlength=num_clusters) / len(real_N)
        generated_K = np.bincount(generated_N, minlength=num_clusters) / len(generated_N)
        precision_A = np.minimum(slope_A[:, None] * real_K, generated_K).sum(axis=1)
        precisions.append(precision_A)
        recalls.append(precision_A / slope_A)
    # Rounding may exceed 1 in the last digit.
    return np.clip(np.mean(precisions, axis=0), 0, 1), np.clip(np.mean(recalls, axis=0), 0, 1)
