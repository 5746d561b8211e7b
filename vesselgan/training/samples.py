"""Pictures of the same few latents through a run, so that one sees what training changes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vesselgan.models.generator import latents
from vesselgan.pictures import enlarge, grey, mid_slice, mip, render_vessels, sheet

NUM_SAMPLES = 4
PANEL = 128


@dataclass(frozen=True)
class FixedLatents:
    """The first samples that `generate` with the same seed would make."""

    seed: int
    latent_size: int
    spacing_mm: tuple[float, float, float]

    def picture(self, generator: nn.Module, device: torch.device) -> np.ndarray:
        """Per sample: mid-axial slice, projection, label projection, 3D vessels; uint8 [H, W, 3]."""
        was_training = generator.training
        generator.eval()
        dtype = next(generator.parameters()).dtype
        with torch.no_grad():
            z_NL = latents(self.seed, range(NUM_SAMPLES), self.latent_size).to(device, dtype)
            patches = generator(z_NL).float().cpu().numpy()
        generator.train(was_training)
        rows = []
        for image_XYZ, score_XYZ in patches:
            image_XYZ = (image_XYZ + 1) * 127.5
            flat = [mid_slice(image_XYZ), mip(image_XYZ), 255 * np.clip(mip(score_XYZ), 0, 1)]
            views = [enlarge(grey(view), PANEL, PANEL) for view in flat]
            rows.append([*views, render_vessels(score_XYZ >= 0.5, self.spacing_mm, size=PANEL)])
        return sheet(rows)
