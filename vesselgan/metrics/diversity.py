"""Diversity of a set of patches, by voxels (MS-SSIM) and by features.

N batch, X Y Z voxels, F features
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vesselgan.core.errors import DataError

WINDOW, SIGMA = 11, 1.5
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang 2003, five scales
STABILISERS = (0.01, 0.03)  # Wang 2004, of the data's range


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

    Gaussian window of 11 voxels, sigma 1.5, without padding; contrast and structure at every scale, luminance at the
    last; `num_scales` scales, halved by averaging. Negative means count as 0. DataError for patches too small for one
    scale.
    """
    scales = num_scales(first_NXYZ.shape[1:])
    if scales == 0:
        raise DataError(f"patches of {list(first_NXYZ.shape[1:])} voxels: MS-SSIM needs {WINDOW} on every axis")
    first, second = first_NXYZ.unsqueeze(1), second_NXYZ.unsqueeze(1)
    result = torch.ones(len(first), device=first.device)
    for scale, weight in enumerate(scale_weights(scales)):
        if scale > 0:
            first, second = functional.avg_pool3d(first, 2), functional.avg_pool3d(second, 2)
        similarity, contrast = _similarity(first, second, data_range)
        result = result * (similarity if scale == scales - 1 else contrast).clamp(min=0) ** weight
    return result


def _similarity(first: Tensor, second: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Means over voxels of SSIM and of its contrast-structure term, [N] each."""
    luminance_stabiliser, contrast_stabiliser = ((factor * data_range) ** 2 for factor in STABILISERS)
    mean_a, mean_b = _blur(first), _blur(second)
    variances = _blur(first * first) - mean_a**2 + _blur(second * second) - mean_b**2
    covariance = _blur(first * second) - mean_a * mean_b
    contrast = (2 * covariance + contrast_stabiliser) / (variances + contrast_stabiliser)
    luminance = (2 * mean_a * mean_b + luminance_stabiliser) / (mean_a**2 + mean_b**2 + luminance_stabiliser)
    axes = (1, 2, 3, 4)
    return (luminance * contrast).mean(dim=axes), contrast.mean(dim=axes)


def _blur(volume: Tensor) -> Tensor:
    """The separable Gaussian window along all three axes, without padding."""
    offset = torch.arange(WINDOW, device=volume.device, dtype=volume.dtype) - WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * SIGMA**2))
    window = window / window.sum()
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = WINDOW
        volume = functional.conv3d(volume, window.reshape(shape))
    return volume


def mean_similarity(
    read: Callable[[int], np.ndarray], count: int, *, num_pairs: int, seed: int, data_range: float, device: torch.device
) -> float:
    """Mean MS-SSIM of `num_pairs` random pairs of different patches from 0 .. count - 1 (lower: more diverse).

    `read` returns patch i as float32 [X, Y, Z].
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_pairs):
        pair = [torch.from_numpy(read(int(i)))[None].to(device) for i in rng.choice(count, 2, replace=False)]
        values.append(float(ms_ssim(*pair, data_range=data_range)))
    return float(np.mean(values))


def mean_pairwise_distance(features_NF: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of different samples (higher: more diverse)."""
    from scipy.spatial.distance import pdist

    return float(pdist(np.asarray(features_NF, dtype=np.float64)).mean())


def mean_nearest_distance(features_NF: np.ndarray, reference_MF: np.ndarray) -> float:
    """Mean Euclidean distance of the samples to their nearest reference sample (lower: more alike)."""
    from scipy.spatial.distance import cdist

    features = np.asarray(features_NF, dtype=np.float64)
    return float(cdist(features, np.asarray(reference_MF, dtype=np.float64)).min(axis=1).mean())
