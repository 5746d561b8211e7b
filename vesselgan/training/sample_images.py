"""Sample images: the samples of a few fixed latents through a run, as slices, projections and renderings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vesselgan.config.schema import TrainGan
from vesselgan.data.patches import HALF_RANGE
from vesselgan.formats.shards import ShardSet
from vesselgan.models.generator import latents
from vesselgan.runtime.timing import Phase
from vesselgan.trainer.run_log import RunLog
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session
from vesselgan.training.collapse import real_patches, samples
from vesselgan.viz import pictures, rendering

NUM_SAMPLES = 4
SIDE = 160
"""Pixels of a slice's longer side and of the rendering."""
GAMMA = 0.8
AXES = (2, 1, 0)
"""Axial, coronal, sagittal."""
ANGLES_DEG = (25.0, 115.0)
View = Callable[[np.ndarray, int], np.ndarray]


@dataclass
class SampleImages:
    """Draws the samples of the first latents that `generate` with the same seed would draw."""

    session: Session
    schedule: Schedule
    generator: Any
    shards: ShardSet
    phase: Phase

    def run_if_due(self, step: int) -> None:
        config, log = self.session.config, self.session.log
        if not self.schedule.is_due(step, config.train.image_every):
            return
        with self.phase("sample_images"):
            if log.is_main:
                for name, image in self._sample_images(config).items():
                    log.image(step, name, image)

    def _sample_images(self, config: TrainGan) -> dict[str, np.ndarray]:
        """The samples in evaluation mode as `sheets`, uint8 [H, W, 3] by name; the generator's mode is restored."""
        generator, was_training = self.generator, self.generator.training
        generator.eval()
        dtype = next(generator.parameters()).dtype
        with torch.no_grad():
            z_NL = latents(config.train.seed, range(NUM_SAMPLES), generator.latent_size)
            z_NL = z_NL.to(self.session.world.device, dtype)
            threshold = config.data.label_threshold
            scaling = config.data.scaling
            real_NCXYZ = real_patches(self.shards, generator, scaling=scaling, label_threshold=threshold)
            patches = [patch.float().cpu().numpy() for patch in samples(generator, z_NL, real_NCXYZ)]
        generator.train(was_training)
        pairs = [((image + 1) * HALF_RANGE, score >= threshold) for image, score in patches]
        return sheets(pairs, self.shards.spacing_mm, "samples")


def log_real_images(log: RunLog, shards: ShardSet, *, scaling: str, label_threshold: float) -> None:
    """Real patches from all over the set, as `sheets` at step 0, to compare the samples with."""
    if log.is_main:
        numbers = np.linspace(0, len(shards) - 1, NUM_SAMPLES).round().astype(int)
        pairs = [shards.pair(int(i), label_threshold, scaling=scaling) for i in numbers]
        for name, image in sheets(pairs, shards.spacing_mm, "real").items():
            log.image(0, name, image)


def sheets(
    pairs: list[tuple[np.ndarray, np.ndarray]], spacing_mm: tuple[float, float, float], name: str
) -> dict[str, np.ndarray]:
    """Three images of (image 0..255, label) pairs:

    <name>/slices: the middle slices, a patch per row: axial, coronal, sagittal, each without and with its label;
    <name>/projections: maximum intensity projections, likewise;
    <name>/vessels: the labels in 3D, a patch per column, from two angles; one colour per connected component.
    """
    kinds: dict[str, list[list[np.ndarray]]] = {"slices": [], "projections": []}
    for image_XYZ, label_XYZ in pairs:
        for kind, view in (("slices", pictures.mid_slice), ("projections", pictures.mip)):
            panels = [_plain_and_labelled(view, image_XYZ, label_XYZ, axis, spacing_mm) for axis in AXES]
            kinds[kind].append([panel for pair in panels for panel in pair])
    kinds["vessels"] = [
        [rendering.render_vessels(label_XYZ, spacing_mm, angle, size=2 * SIDE) for _, label_XYZ in pairs]
        for angle in ANGLES_DEG
    ]
    return {f"{name}/{kind}": pictures.sheet(rows) for kind, rows in kinds.items()}


def _plain_and_labelled(
    view: View, image_XYZ: np.ndarray, label_XYZ: np.ndarray, axis: int, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """A view across `axis`, true to scale, without and with the label's outline."""
    grey = pictures.grey(view(image_XYZ, axis), gamma=GAMMA)
    across, up = (n for n in range(3) if n != axis)
    width_mm, height_mm = (image_XYZ.shape[n] * spacing_mm[n] for n in (across, up))
    scale = SIDE / max(side * edge_mm for side, edge_mm in zip(image_XYZ.shape, spacing_mm, strict=True))
    size = max(1, round(height_mm * scale)), max(1, round(width_mm * scale))
    plain = pictures.enlarge(grey, *size)
    return plain, pictures.outline(plain, pictures.enlarge_mask(view(label_XYZ, axis), *size))
