import numpy as np
import pytest
import torch

from vesselgan.core.errors import DataError
from vesselgan.metrics.diversity import (
    mean_nearest_distance,
    mean_pairwise_distance,
    mean_similarity,
    ms_ssim,
    num_scales,
    scale_weights,
)


def smooth_pair(shape: tuple[int, int, int], seed: int) -> list[torch.Tensor]:
    """Two batches of two patches in 0..255 that are alike in part."""
    generator = torch.Generator().manual_seed(seed)
    shared, *own = (torch.rand((2, *shape), generator=generator) for _ in range(3))
    return [torch.nn.functional.avg_pool3d(160 * shared + 95 * x, 3, stride=1, padding=1) for x in own]


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((128, 128, 64), 3), ((161, 176, 176), 4), ((176, 176, 176), 5), ((16, 16, 16), 1), ((10, 64, 64), 0)],
)
def test_the_window_of_eleven_fits_at_every_scale(shape, scales):
    assert num_scales(shape) == scales
    assert scales == 0 or (min(shape) // 2 ** (scales - 1) >= 11 and sum(scale_weights(scales)) == pytest.approx(1))


@pytest.mark.parametrize("shape", [(48, 48, 44), (12, 14, 16)])
def test_it_equals_wang_s_definition(shape):
    first, second = smooth_pair(shape, 1)
    weights = scale_weights(num_scales(shape))
    expected = torch.stack([by_definition(a.double(), b.double(), weights) for a, b in zip(first, second, strict=True)])
    found = ms_ssim(first, second, data_range=255.0)
    assert 0.3 < float(found.min()) < float(found.max()) < 0.99  # a middle value, where every factor counts
    # float32 variances, as differences of squares of up to 255^2
    assert torch.allclose(found.double(), expected, atol=2e-4)


def by_definition(first_XYZ: torch.Tensor, second_XYZ: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """Wang 2003, in float64 with scipy's Gaussian filter."""
    from scipy.ndimage import gaussian_filter

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5, 5:-5]

    result, a, b = 1.0, first_XYZ.numpy(), second_XYZ.numpy()
    for scale, weight in enumerate(weights):
        if scale:
            a, b = (torch.nn.functional.avg_pool3d(torch.from_numpy(x)[None], 2)[0].numpy() for x in (a, b))
        mean_a, mean_b = blur(a), blur(b)
        variances = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        structure = (2 * covariance + 7.65**2) / (variances + 7.65**2)
        luminance = (2 * mean_a * mean_b + 2.55**2) / (mean_a**2 + mean_b**2 + 2.55**2)
        mean = (structure * luminance if scale == len(weights) - 1 else structure).mean()
        result *= max(mean, 0) ** weight
    return torch.tensor(result, dtype=torch.float64)


def test_equal_patches_score_one():
    first, second = smooth_pair((24, 24, 24), 2)
    assert torch.allclose(ms_ssim(first, first, data_range=255.0), torch.ones(2), atol=1e-5)
    noise = torch.rand((2, 24, 24, 24), generator=torch.Generator().manual_seed(0)) * 255
    assert float(ms_ssim(first, noise, data_range=255.0).max()) < float(ms_ssim(first, second, data_range=255.0).min())
    with pytest.raises(DataError, match="MS-SSIM needs 11"):
        ms_ssim(first[..., :8], second[..., :8], data_range=255.0)


def test_a_generator_with_one_mode_is_less_diverse():
    source = np.random.default_rng(3)
    many = source.uniform(0, 255, (6, 12, 12, 12)).astype(np.float32)
    one = np.repeat(many[:1], 6, axis=0)
    settings = {"num_pairs": 4, "seed": 0, "data_range": 255.0, "device": torch.device("cpu")}
    assert mean_similarity(lambda i: one[i], 6, **settings) == pytest.approx(1, abs=1e-5)
    assert mean_similarity(lambda i: many[i], 6, **settings) < 0.2
    assert mean_similarity(lambda i: many[i], 6, **settings) == mean_similarity(lambda i: many[i], 6, **settings)


def test_distances_of_features_by_hand():
    corners = np.array([[0.0, 0], [3, 0], [0, 4]])
    assert mean_pairwise_distance(corners) == (3 + 4 + 5) / 3
    # From (0, 1): 1 to the first corner. From (3, 4): 3 to the third one.
    assert mean_nearest_distance(np.array([[0.0, 1], [3, 4]]), corners) == 2.0
