"""The straight path and its velocity, by hand."""

import pytest
import torch

from vesselgan.losses.flow_matching import denoising_errors, point_on_path


def test_path_runs_from_patch_to_noise():
    patch, noise = torch.full((3, 2, 1, 1, 1), 4.0), torch.zeros(3, 2, 1, 1, 1)
    points = point_on_path(patch, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert points[:, 0].flatten().tolist() == [4.0, 3.0, 0.0]


def test_error_is_the_mean_square_per_channel():
    patch = torch.randn(2, 2, 2, 2, 2)
    denoised = patch.clone()
    assert denoising_errors(denoised, patch).tolist() == [0.0, 0.0]
    denoised[0, 1] += 2.0  # half of the label's values
    assert denoising_errors(denoised, patch).tolist() == pytest.approx([0.0, 2.0])
