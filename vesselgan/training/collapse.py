"""Two failures of a GAN that its losses do not show: one sample for every latent, and a critic without a gradient.

Shapes: N samples, C channel (0 image in [-1, 1], 1 vessel label), X Y Z voxels, F features
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vesselgan.data.patches import ShardDataset
from vesselgan.formats.shards import ShardSet
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.generator import latents
from vesselgan.models.variants import takes_tissue
from vesselgan.trainer.logger import Interval
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session

NUM_SAMPLES = 8
POOL_VOXELS = 4
"""Voxels per axis that are averaged before samples are compared: noise is no diversity."""
MIN_DIVERSITY = 0.1
"""Mean distance of samples over that of real patches; below, they are the same sample."""
MIN_GRAD_NORM = 1e-3
"""Of the critic between real and fake, which the penalty draws to 1; below, the generator learns nothing."""
MIN_SCORE_GAP = 1e-6
"""Between the mean scores of real and fake."""


def mean_pairwise_distance(patches: Iterable[Tensor]) -> float:
    """Mean root-mean-square difference of all pairs of patches [C, X, Y, Z], each pooled by POOL_VOXELS or its side."""

    def pooled(patch_CXYZ: Tensor) -> Tensor:
        return F.avg_pool3d(patch_CXYZ.float(), [min(POOL_VOXELS, side) for side in patch_CXYZ.shape[1:]]).flatten()

    features_NF = torch.stack([pooled(patch_CXYZ) for patch_CXYZ in patches])
    return (torch.pdist(features_NF).mean() / features_NF.shape[1] ** 0.5).item()


def real_patches(shards: ShardSet, generator: nn.Module, *, scaling: str, label_threshold: float | None) -> Tensor:
    """Up to NUM_SAMPLES patches [N, C, X, Y, Z] from all over the set, as the generator's training reads them."""
    numbers = np.unique(np.linspace(0, len(shards) - 1, NUM_SAMPLES).round().astype(int)).tolist()
    reading: dict[str, Any] = {"scaling": scaling, "label_threshold": label_threshold, "cache_bytes": 0}
    return ShardDataset(shards, with_tissue=takes_tissue(generator), **reading).read(numbers)


def samples(generator: nn.Module, z_NL: Tensor, real_NCXYZ: Tensor) -> Iterator[Tensor]:
    """The samples [2, X, Y, Z] of latents; where labels are given, of the real patches' labels.

    One at a time: several full patches take more memory than a step of few.
    """
    for i, z_L in enumerate(z_NL):
        given = []
        if isinstance(generator, FlowGenerator) and generator.num_given:
            given = [real_NCXYZ[i % len(real_NCXYZ), None, 1:].to(z_L.device)]
        yield generator(z_L[None], *given)[0]


@torch.no_grad()
def sample_metrics(generator: nn.Module, z_NL: Tensor, real_NCXYZ: Tensor) -> dict[str, float]:
    """`samples/diversity` (1: as real patches) and its warning; the generator's mode is restored.

    Of the channels that are made: where labels are given, those of different patches are no merit of the samples.
    """
    was_training = generator.training
    generator.eval()
    made = slice(1 if isinstance(generator, FlowGenerator) and generator.num_given else 2)
    distance = mean_pairwise_distance(sample_CXYZ[made] for sample_CXYZ in samples(generator, z_NL, real_NCXYZ))
    generator.train(was_training)
    diversity = distance / max(mean_pairwise_distance(real_NCXYZ[:, made]), 1e-6)
    return {"samples/diversity": diversity, "warning/mode_collapse": float(diversity < MIN_DIVERSITY)}


@dataclass
class CollapseMonitor:
    """Measures both failures for the log, and logs a line for each that is found."""

    session: Session
    schedule: Schedule
    generator: Any
    shards: ShardSet

    def metrics(self, interval: Interval) -> dict[str, float]:
        """Of the critic; on rank 0, where sample images are due, also of the samples."""
        config, log = self.session.config, self.session.log
        metrics = critic_metrics(interval.means)
        if log.is_main and self.schedule.is_due(interval.step, config.train.image_every):
            data, dtype = config.data, next(self.generator.parameters()).dtype
            reading: dict[str, Any] = {"scaling": data.scaling, "label_threshold": data.label_threshold}
            real_NCXYZ = real_patches(self.shards, self.generator, **reading)
            # The same latents through the whole run.
            z_NL = latents(config.train.seed, range(NUM_SAMPLES), self.generator.latent_size)
            metrics |= sample_metrics(self.generator, z_NL.to(self.session.world.device, dtype), real_NCXYZ)
        for line in warning_lines(interval.means | metrics):
            log.line(line)
        return metrics


def critic_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The warning of a flat critic, one without gradient or score gap; nothing if every step was skipped."""
    if "loss/wasserstein" not in metrics:
        return {}
    has_no_gradient = metrics.get("gp/grad_norm", math.inf) < MIN_GRAD_NORM
    is_flat = has_no_gradient or abs(metrics["loss/wasserstein"]) < MIN_SCORE_GAP
    return {"warning/flat_critic": float(is_flat)}


def warning_lines(metrics: dict[str, float]) -> list[str]:
    """A line for every warning that is set in `metrics`."""
    lines = []
    if metrics.get("warning/mode_collapse"):
        lines.append(
            f"warning: mode collapse: {NUM_SAMPLES} fixed latents give nearly one sample (diversity "
            f"{metrics['samples/diversity']:.3g} of that of real patches, below {MIN_DIVERSITY}); look at the samples, "
            "and try lower learning rates or another seed"
        )
    if metrics.get("warning/flat_critic"):
        norm = f"gradient norm {metrics['gp/grad_norm']:.3g}, " if "gp/grad_norm" in metrics else ""
        lines.append(
            f"warning: flat critic: {norm}score gap {metrics['loss/wasserstein']:.3g}; the generator learns nothing "
            "from it: try a lower learning rate of the critic, or bf16 in place of fp16 where gp/zero_fraction is "
            "above 0"
        )
    return lines
