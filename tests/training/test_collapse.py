"""Diversity against distances done by hand, and alarms that ring where a GAN is dead and only there."""

import pytest
import torch
from torch import Tensor, nn

from vesselgan.formats.shards import ShardSet
from vesselgan.models.blocks import init_weights
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.generator import Generator, latents
from vesselgan.training.collapse import (
    NUM_SAMPLES,
    critic_metrics,
    mean_pairwise_distance,
    real_patches,
    sample_metrics,
    warning_lines,
)

PATCH, LATENT = (16, 16, 16), 4


def levels(*values: float) -> Tensor:
    """One constant patch per value."""
    return torch.stack([torch.full((2, 8, 8, 8), value) for value in values])


def test_the_spread_is_the_mean_distance():
    # |0-3|, |0-1|, |3-1|: mean 2
    assert mean_pairwise_distance(levels(0.0, 3.0, 1.0)) == pytest.approx(2.0)
    assert mean_pairwise_distance(levels(0.5, 0.5, 0.5)) == 0.0


def test_thin_patches_are_compared_too():
    assert mean_pairwise_distance(levels(0.0, 3.0, 1.0)[..., :2]) == pytest.approx(2.0)


def test_noise_is_no_diversity():
    torch.manual_seed(0)
    # Independent voxels of SD 1 differ by sqrt(2); averages over 64 of them by an eighth of that.
    assert mean_pairwise_distance(torch.randn(8, 2, 32, 32, 32)) == pytest.approx(2**0.5 / 8, rel=0.02)


class Dead(nn.Module):
    """One sample for every latent, with a little noise on it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, z_NL: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        noise = 0.02 * torch.randn((len(z_NL), 2, *PATCH), generator=generator)
        return torch.ones(2, *PATCH) * 0.2 + noise + self.weight


def test_the_alarm_rings_for_one_sample(work_dir):
    shards = ShardSet(work_dir / "phantom" / "shards" / "gan" / "train")
    real = real_patches(shards, Dead(), scaling="volume", label_threshold=0.5)
    assert real.shape[:2] == (NUM_SAMPLES, 2) and -1 <= real.min() and real.max() <= 1
    z_NL = latents(990, range(NUM_SAMPLES), LATENT)
    dead = sample_metrics(Dead(), z_NL, real)
    assert dead["warning/mode_collapse"] == 1.0 and dead["samples/diversity"] < 0.1
    assert len(warning_lines(dead)) == 1
    alive = Generator(PATCH, 8, LATENT)
    init_weights(alive, 1)
    with torch.no_grad():
        alive.last.weight.mul_(20)
        for _ in range(3):
            alive.train()(torch.randn(8, LATENT))
    found = sample_metrics(alive, z_NL, real)
    assert found["warning/mode_collapse"] == 0.0 and warning_lines(found) == [] and alive.training


def test_given_labels_are_no_diversity_of_the_samples(work_dir):
    """A network whose image is the same for every label and place is dead, however much the given labels differ."""
    shards = ShardSet(work_dir / "phantom" / "shards" / "gan" / "train")
    settings = {"has_position": True, "time_shift": 1.0, "num_steps": 1, "guidance": 0.0, "num_given": 2}
    dead = FlowGenerator(shards.patch_shape, 8, **settings)
    real = real_patches(shards, dead, scaling="volume", label_threshold=0.5)
    assert real.shape[1] == 3
    with torch.no_grad():
        for parameter in dead.parameters():
            parameter.zero_()
    z_NL = latents(990, range(NUM_SAMPLES), dead.latent_size)
    assert sample_metrics(dead, z_NL, real) == {"samples/diversity": 0.0, "warning/mode_collapse": 1.0}


def test_a_critic_without_slope_or_gap_is_told():
    well = {"gp/grad_norm": 0.9, "loss/wasserstein": 3.0}
    assert critic_metrics(well) == {"warning/flat_critic": 0.0} and warning_lines(well | critic_metrics(well)) == []
    for values in (well | {"gp/grad_norm": 1e-5}, well | {"loss/wasserstein": -1e-8}):
        found = critic_metrics(values)
        assert found == {"warning/flat_critic": 1.0}
        assert len(warning_lines(values | found)) == 1
    assert warning_lines({"loss/wasserstein": 0.0} | critic_metrics({"loss/wasserstein": 0.0}))  # without a penalty
    # Every step of the interval was skipped: nothing is known.
    assert critic_metrics({"amp/critic_skipped": 1.0}) == {}
