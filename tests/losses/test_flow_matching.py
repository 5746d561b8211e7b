"""The straight path and its velocity, by hand."""

import torch

from vesselgan.losses.flow_matching import point_on_path, velocity_errors


def test_path_runs_from_patch_to_noise():
    patch, noise = torch.full((3, 2, 1, 1, 1), 4.0), torch.zeros(3, 2, 1, 1, 1)
    points = point_on_path(patch, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert points[:, 0].flatten().tolist() == [4.0, 3.0, 0.0]


def test_error_is_zero_at_the_paths_velocity():
    patch, noise = torch.randn(2, 2, 2, 2, 2), torch.randn(2, 2, 2, 2, 2)
    assert velocity_errors(noise - patch, patch, noise).tolist() == [0.0, 0.0]


def test_error_is_the_mean_square_per_channel():
    patch = noise = torch.zeros(2, 2, 2, 2, 2)
    velocity = torch.zeros(2, 2, 2, 2, 2)
    velocity[0, 1] = 2.0  # half of the label's values are off by 2
    assert velocity_errors(velocity, patch, noise).tolist() == [0.0, 2.0]
