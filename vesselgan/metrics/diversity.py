"""Diversity of a set of patches, by voxels (MS-SSIM) and by features.

N batch, X Y Z voxels, F features
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vesselgan.core.errors import DataError, UsageError
from vesselgan.metrics.frechet import as_features

WINDOW, SIGMA = 11, 1.5
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang 2003, five scales


def num_scales(patch_shape: Sequence[int]) -> int:
    """How many of the five scales fit: the window must fit into the shortest side after each halving.

    3 for 128x128x64 (64, 32, 16; the window is 11), 1 for 16x16x16, 0 below 11 voxels.
    """
    shortest = min(patch_shape)
    return sum(shortest // 2**scale >= WINDOW for scale in range(len(SCALE_WEIGHTS)))


def scale_weights(scales: int) -> tuple[float, ...]:
    """Wang's weights of the first `scales` scales, normalised to sum 1."""
    weights = SCALE_WEIGHTS[:scales]
    return tuple(weight / sum(weights) for weight in weights)


def ms_ssim(first_NXYZ: Tensor, second_NXYZ: Tensor, *, data_range: float) -> Tensor:
    """Multi-scale structural similarity (Wang 2003) of pairs of 3D patches, [N]: 1 for equal patches.

    MONAI's, with a Gaussian window of 11 voxels, sigma 1.5, without padding, on as many of the five scales as fit
    (`num_scales`). DataError for patches too small for one scale and for values that are not finite.
    """
    from monai.metrics.regression import MultiScaleSSIMMetric

    scales = num_scales(first_NXYZ.shape[1:])
    if scales == 0:
        raise DataError(f"patches of {list(first_NXYZ.shape[1:])} voxels: MS-SSIM needs {WINDOW} on every axis")
    if first_NXYZ.shape != second_NXYZ.shape:
        raise DataError(f"patches of {list(first_NXYZ.shape)} and {list(second_NXYZ.shape)}: expected one shape")
    if not (first_NXYZ.isfinite().all() and second_NXYZ.isfinite().all() and 0 < data_range < math.inf):
        raise DataError(f"MS-SSIM needs finite patches and data_range={data_range} finite and above 0")
    metric = MultiScaleSSIMMetric(3, data_range, kernel_size=WINDOW, kernel_sigma=SIGMA, weights=scale_weights(scales))
    return torch.as_tensor(metric(first_NXYZ.unsqueeze(1), second_NXYZ.unsqueeze(1))).squeeze(1)


def mean_similarity(
    read: Callable[[int], np.ndarray], count: int, *, num_pairs: int, seed: int, data_range: float, device: torch.device
) -> float:
    """Mean MS-SSIM of `num_pairs` random pairs of different patches from 0 .. count - 1 (lower: more diverse).

    `read` returns patch i as float32 [X, Y, Z].
    """
    if count < 2 or num_pairs < 1:
        raise UsageError(f"{num_pairs} pairs of {count} patches: a pair needs two different ones")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_pairs):
        pair = [torch.from_numpy(read(int(i)))[None].to(device) for i in rng.choice(count, 2, replace=False)]
        values.append(float(ms_ssim(*pair, data_range=data_range)))
    return float(np.mean(values))


def mean_pairwise_distance(features_NF: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of different samples (higher: more diverse)."""
    from scipy.spatial.distance import pdist

    return float(pdist(as_features(features_NF, "features")).mean())


def mean_nearest_distance(features_NF: np.ndarray, reference_MF: np.ndarray) -> float:
    """Mean Euclidean distance of the samples to their nearest reference sample (lower: more alike)."""
    from scipy.spatial.distance import cdist

    features, reference = as_features(features_NF, "features"), as_features(reference_MF, "reference")
    if features.shape[1] != reference.shape[1]:
        raise DataError(f"{features.shape[1]} and {reference.shape[1]} features: use one extractor for both")
    return float(cdist(features, reference).min(axis=1).mean())
