import numpy as np
import pytest
import torch
from monai.metrics.regression import MultiScaleSSIMMetric

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
def test_it_equals_monai_at_the_same_scales(shape):
    first, second = smooth_pair(shape, 1)
    weights = scale_weights(num_scales(shape))
    reference = MultiScaleSSIMMetric(3, data_range=255.0, kernel_size=11, kernel_sigma=1.5, weights=weights)
    expected = reference._compute_metric(first[:, None], second[:, None])[:, 0]
    found = ms_ssim(first, second, data_range=255.0)
    assert 0.3 < float(found.min()) < float(found.max()) < 0.99  # a middle value, where every factor counts
    # 2e-4: float32 variances as differences of squares of up to 255^2.
    assert torch.allclose(found, expected, atol=2e-4)


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
