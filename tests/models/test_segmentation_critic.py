"""The critic that classifies voxels: shapes, precision, what it reads, independence of samples, power iterations."""

import pytest
import torch

from vesselgan.models.blocks import init_weights, spectral_vectors
from vesselgan.models.segmentation_critic import SegmentationCritic

PATCH = (32, 16, 16)


def started(num_given: int = 2) -> SegmentationCritic:
    critic = SegmentationCritic(PATCH, 8, num_given)
    init_weights(critic, 1)
    return critic


@pytest.mark.parametrize(("num_given", "classes"), [(1, 3), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_voxel_gets_logits_at_least_float32(num_given: int, classes: int, dtype: torch.dtype) -> None:
    logits = started(num_given).to(dtype)(torch.randn(2, 1 + num_given, *PATCH))
    assert logits.dtype == torch.float32 and logits.shape == (2, classes, *PATCH)


def test_it_finds_what_was_given_in_the_image_alone() -> None:
    critic = started().eval()
    patch = torch.randn(2, 3, *PATCH)
    other = torch.cat([patch[:, :1], torch.randn(2, 2, *PATCH)], 1)
    assert torch.equal(critic(patch), critic(other))
    torch.testing.assert_close(critic(patch)[1:], critic(patch[1:]))  # each sample for itself


def test_every_convolution_but_the_last_is_spectrally_normalised() -> None:
    critic = started()
    before = spectral_vectors(critic)
    assert len(before) == 4 + 3 + 3 + 3
    critic(torch.randn(1, 3, *PATCH))
    assert all(not torch.equal(v, new) for (_, v), (_, new) in zip(before, spectral_vectors(critic), strict=True))
