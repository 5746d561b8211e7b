"""Two ways in which a GAN dies while its losses look well: one sample for every latent, and a critic that sees nothing.

Shapes: N samples, C channel (0 image in [-1, 1], 1 vessel label), X Y Z voxels, F features
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vesselgan.formats.shards import ShardSet
from vesselgan.models.generator import latents

NUM_SAMPLES = 8
COARSE = 4
"""Voxels per axis that are averaged before samples are compared: noise is no diversity."""
LEAST_DIVERSITY = 0.1
"""Samples that differ by less than this share of what real patches differ by are the same sample."""
LEAST_SLOPE = 1e-3
"""The critic's slope between real and fake, which the penalty draws to 1; below, the generator learns nothing."""
LEAST_GAP = 1e-6
"""Of the scores of real and fake."""


def spread(patches: Iterable[Tensor]) -> float:
    """Mean root-mean-square difference of every two patches [C, X, Y, Z], after averaging over COARSE^3 voxels."""
    features_NF = torch.stack([F.avg_pool3d(patch_CXYZ.float(), COARSE).flatten() for patch_CXYZ in patches])
    return (torch.pdist(features_NF).mean() / features_NF.shape[1] ** 0.5).item()


def real_patches(shards: ShardSet, *, scaling: str, label_threshold: float) -> Tensor:
    """Up to NUM_SAMPLES patches [N, 2, X, Y, Z] spread over the set, as the generator would make them."""
    numbers = np.unique(np.linspace(0, len(shards) - 1, NUM_SAMPLES).round().astype(int))
    pairs = [shards.read_pair(int(i), scaling=scaling, label_threshold=label_threshold) for i in numbers]
    return torch.stack([torch.from_numpy(np.stack([image / 127.5 - 1, label])).float() for image, label in pairs])


@dataclass(frozen=True)
class CollapseWatch:
    """Looks at the same latents through a run, and at the critic's own numbers."""

    seed: int
    latent_size: int
    real_spread: float
    """`spread` of real patches."""

    @torch.no_grad()
    def of_samples(self, generator: nn.Module, device: torch.device) -> dict[str, float]:
        """`sample_diversity` (1: as real patches) and its alarm; the generator is left as it was."""
        was_training, dtype = generator.training, next(generator.parameters()).dtype
        z_NL = latents(self.seed, range(NUM_SAMPLES), self.latent_size).to(device, dtype)
        generator.eval()
        # One at a time: several full patches take more memory than a step of few.
        found = spread(generator(z_NL[i : i + 1])[0] for i in range(NUM_SAMPLES)) / max(self.real_spread, 1e-6)
        generator.train(was_training)
        return {"sample_diversity": found, "warning/mode_collapse": float(found < LEAST_DIVERSITY)}


def of_critic(values: dict[str, float]) -> dict[str, float]:
    """The alarm of a critic without slope or without a gap between real and fake, from an interval's means."""
    if "gp/grad_norm" not in values:
        return {}
    is_flat = values["gp/grad_norm"] < LEAST_SLOPE or abs(values["loss/wasserstein"]) < LEAST_GAP
    return {"warning/critic_collapse": float(is_flat)}


def alarms(values: dict[str, float]) -> list[str]:
    """A line for every alarm among `values`."""
    lines = []
    if values.get("warning/mode_collapse"):
        lines.append(
            f"warning: mode collapse: {NUM_SAMPLES} fixed latents give nearly one sample (diversity "
            f"{values['sample_diversity']:.3g} of that of real patches, below {LEAST_DIVERSITY}); look at the samples, "
            "and try lower learning rates or another seed"
        )
    if values.get("warning/critic_collapse"):
        lines.append(
            f"warning: the critic sees nothing: slope {values['gp/grad_norm']:.3g}, gap of scores "
            f"{values['wasserstein']:.3g}; the generator learns nothing from it: try a lower learning rate of the "
            "critic, or bf16 in place of fp16 where gp/zero_fraction is above 0"
        )
    return lines
