"""Scores of a U-Net on the real validation patches; they choose the checkpoint and end the run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vesselgan.data.patches import ShardDataset
from vesselgan.losses.segmentation import soft_dice, sum_over_ranks
from vesselgan.runtime.distributed import World
from vesselgan.viz.pictures import enlarge, grey, mip, overlay, sheet

# N batch, C channel (0 image, 1 vessel label), X Y Z voxels
THRESHOLD = 0.5
NUM_IMAGES = 4
PANEL_PIXELS = 128


@dataclass(frozen=True)
class Scores:
    """Over all validation patches as one volume, so independent of the batch size and the number of ranks."""

    loss: float
    """-Dice of the probabilities, smooth 1: the paper's training loss, whatever unet.loss is."""
    dice: float
    """Dice of the probabilities thresholded at THRESHOLD."""


@dataclass(frozen=True)
class Selection:
    """The best validation so far; part of every checkpoint, so that a resumed run selects the same."""

    best_checkpoint: str | None = None
    """Null before the first validation."""
    best_loss: float | None = None
    best_dice: float | None = None
    num_worse: int = 0
    """Validations since the best."""

    def after(self, checkpoint: str, scores: Scores) -> "Selection":
        """Updated by one validation; the earlier of two equals stays the best."""
        if self.best_loss is None or scores.loss < self.best_loss:
            return Selection(checkpoint, scores.loss, scores.dice, 0)
        return Selection(self.best_checkpoint, self.best_loss, self.best_dice, self.num_worse + 1)

    def is_over(self, patience: int) -> bool:
        """Whether early stopping ends the run."""
        return self.num_worse >= patience

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def validate(unet: nn.Module, dataset: ShardDataset, *, batch_size: int, world: World) -> Scores:
    """Scores of the U-Net in evaluation mode, the patches divided over the ranks; its mode is restored."""
    sums = torch.zeros(5, dtype=torch.float64, device=world.device)
    was_training = unet.training
    unet.eval()
    for batch_NCXYZ in _batches_of_rank(dataset, batch_size, world):
        probability, label = _predict(unet, batch_NCXYZ, world.device)
        mask = probability >= THRESHOLD
        terms = [(probability * label).sum(), probability.sum(), label.sum(), (mask * label).sum(), mask.sum()]
        sums += torch.stack([term.double() for term in terms])
    unet.train(was_training)
    sums = sum_over_ranks(sums)
    overlap, predicted, true = sums[3].item(), sums[4].item(), sums[2].item()
    dice = 2 * overlap / (predicted + true) if predicted + true else 1.0
    return Scores(loss=-soft_dice(sums[:3]).item(), dice=dice)


@torch.no_grad()
def validation_image(unet: nn.Module, dataset: ShardDataset, device: torch.device) -> np.ndarray:
    """Maximum intensity projections; per patch the image, then overlaid with the true and the predicted label."""
    was_training = unet.training
    unet.eval()
    indices = np.linspace(0, len(dataset) - 1, min(NUM_IMAGES, len(dataset))).astype(int)
    batch_NCXYZ = dataset.read(indices.tolist())
    probability, label = _predict(unet, batch_NCXYZ, device)
    unet.train(was_training)
    rows = []
    mask = probability >= THRESHOLD
    for image_XYZ, true_XYZ, predicted_XYZ in zip(batch_NCXYZ[:, 0], label[:, 0], mask[:, 0], strict=True):
        projection = grey(mip(image_XYZ.numpy()))
        overlays = [overlay(projection, mip(mask_XYZ.cpu().numpy())) for mask_XYZ in (true_XYZ, predicted_XYZ)]
        rows.append([enlarge(panel, PANEL_PIXELS, PANEL_PIXELS, smooth=False) for panel in (projection, *overlays)])
    return sheet(rows)


def _batches_of_rank(dataset: ShardDataset, batch_size: int, world: World) -> Iterator[Tensor]:
    indices = range(world.rank, len(dataset), world.size)
    for first in range(0, len(indices), batch_size):
        yield dataset.read(indices[first : first + batch_size])


def _predict(unet: nn.Module, batch_NCXYZ: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    batch_NCXYZ = batch_NCXYZ.to(device)
    return unet(batch_NCXYZ[:, :1]), batch_NCXYZ[:, 1:]
