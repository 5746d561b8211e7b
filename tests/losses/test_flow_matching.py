"""The straight path and its velocity, by hand."""

import pytest
import torch

from vesselgan.losses.flow_matching import denoising_errors, point_on_path


def test_path_runs_from_patch_to_noise():
    patch, noise = torch.full((3, 2, 1, 1, 1), 4.0), torch.zeros(3, 2, 1, 1, 1)
    points = point_on_path(patch, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert points[:, 0].flatten().tolist() == [4.0, 3.0, 0.0]


def test_error_is_the_mean_square_over_time():
    patch, time = torch.randn(2, 2, 2, 2, 2), torch.tensor([0.5, 0.01])
    denoised = patch.clone()
    assert denoising_errors(denoised, patch, time).tolist() == [0.0, 0.0]
    denoised[0, 1] += 2.0  # half of the label's values, at time 0.5
    denoised[1, 0] += 1.0  # half of the image's, below the smallest time
    assert denoising_errors(denoised, patch, time).tolist() == pytest.approx([10.0, 4.0])
