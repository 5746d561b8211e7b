"""The Frechet distance of two sets of features."""

# N samples, F features

import warnings

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.metrics.masks import LARGEST, as_finite


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets [N, F]: FID (Heusel 2017).

    Covariances over n - 1, all in float64. With C_a = A^T A and C_b = B^T B the trace of the root is the sum of the
    singular values of A B^T: without a matrix root, rank-deficient covariances lose no digits. Clipped at 0. Depends on
    n: compare only distances of equal n. Warns when a set has too few samples for a covariance of full rank. DataError
    below 2 samples, for values that are not finite or from LARGEST on, and for different numbers of features.
    """
    sets = [as_features(features_a, "features_a"), as_features(features_b, "features_b")]
    if sets[0].shape[1] != sets[1].shape[1]:
        raise DataError(f"different numbers of features: {sets[0].shape[1]} and {sets[1].shape[1]}; use one extractor")
    if note := rank_note(min(len(features) for features in sets), sets[0].shape[1]):
        warnings.warn(note, RuntimeWarning, stacklevel=2)
    (mean_a, root_a), (mean_b, root_b) = (_mean_and_root(features) for features in sets)
    trace = np.square(root_a).sum() + np.square(root_b).sum()
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(0.0, float(np.square(mean_a - mean_b).sum() + trace - 2 * shared))


def rank_note(num_samples: int, num_features: int) -> str | None:
    """A note on a covariance that lacks full rank; None if it has full rank."""
    if num_samples > num_features:
        return None
    return (
        f"{num_samples} samples of {num_features} features: the covariance has rank {num_samples - 1} at most and the "
        "Frechet distance is far above its value for many samples; compare it only with distances of the same n"
    )


def as_features(features: np.ndarray, name: str) -> np.ndarray:
    """`features` as float64; DataError unless they are [N, F], below LARGEST, with two samples or more."""
    # In C order: sums over another order round otherwise.
    features = np.ascontiguousarray(as_finite(features, name, largest=LARGEST), dtype=np.float64)
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise DataError(f"{name} has shape {features.shape}: expected [samples, features] with at least two samples")
    return features


def _mean_and_root(features_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [F] and a matrix A of at most F rows with A^T A = covariance."""
    mean_F = features_NF.mean(axis=0)
    root = (features_NF - mean_F) / np.sqrt(len(features_NF) - 1)
    if len(root) > root.shape[1]:
        root = np.asarray(np.linalg.qr(root, mode="r"))
    return mean_F, root
