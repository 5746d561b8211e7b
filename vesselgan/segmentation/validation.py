"""How good a U-Net is on the real validation patches: what chooses the checkpoint and ends the run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vesselgan.data.patches import PatchDataset
from vesselgan.losses.segmentation import soft_dice, sum_over_ranks
from vesselgan.runtime.distributed import World
from vesselgan.viz.pictures import enlarge, grey, mip, overlay, sheet

# N batch, C channel (0 image, 1 vessel label), X Y Z voxels
CUT = 0.5
NUM_SHOWN = 4
PANEL = 128


@dataclass(frozen=True)
class Scores:
    """Over all validation patches taken as one volume, so that no batch or rank count can change them."""

    loss: float
    """-Dice of the probabilities, smooth 1: the paper's training loss, whatever unet.loss is."""
    dice: float
    """Dice of the label that a cut at 0.5 gives."""


@dataclass(frozen=True)
class Selection:
    """The best validation so far; JSON by `asdict`. Lives in every checkpoint, so a resumed run chooses as it would."""

    best_checkpoint: str | None = None
    """Null before the first validation."""
    best_loss: float | None = None
    best_dice: float | None = None
    num_worse: int = 0
    """Validations since."""

    def after(self, checkpoint: str, scores: Scores) -> "Selection":
        """With one more validation; the earlier of two equals stays the best."""
        if self.best_loss is None or scores.loss < self.best_loss:
            return Selection(checkpoint, scores.loss, scores.dice, 0)
        return Selection(self.best_checkpoint, self.best_loss, self.best_dice, self.num_worse + 1)

    def is_over(self, patience: int) -> bool:
        return self.num_worse >= patience

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def validate(unet: nn.Module, dataset: PatchDataset, *, batch_size: int, world: World) -> Scores:
    """The U-Net in evaluation mode on every patch once, divided over the ranks; its mode is put back afterwards."""
    sums = torch.zeros(5, dtype=torch.float64, device=world.device)
    was_training = unet.training
    unet.eval()
    for batch_NCXYZ in _share(dataset, batch_size, world):
        probability, label = _predict(unet, batch_NCXYZ, world.device)
        found = probability >= CUT
        parts = [(probability * label).sum(), probability.sum(), label.sum(), (found * label).sum(), found.sum()]
        sums += torch.stack([part.double() for part in parts])
    unet.train(was_training)
    sums = sum_over_ranks(sums)
    overlap, predicted, true = sums[3].item(), sums[4].item(), sums[2].item()
    dice = 2 * overlap / (predicted + true) if predicted + true else 1.0
    return Scores(loss=-soft_dice(sums[:3]).item(), dice=dice)


@torch.no_grad()
def picture(unet: nn.Module, dataset: PatchDataset, device: torch.device) -> np.ndarray:
    """Per patch: its image, the image with the true label, the image with the predicted one, as projections."""
    was_training = unet.training
    unet.eval()
    chosen = np.linspace(0, len(dataset) - 1, min(NUM_SHOWN, len(dataset))).astype(int)
    batch_NCXYZ = dataset.read(chosen.tolist())
    probability, label = _predict(unet, batch_NCXYZ, device)
    unet.train(was_training)
    rows = []
    for image_XYZ, true_XYZ, found_XYZ in zip(batch_NCXYZ[:, 0], label[:, 0], probability[:, 0] >= CUT, strict=True):
        flat = grey(mip(image_XYZ.numpy()))
        painted = [overlay(flat, mip(mask_XYZ.cpu().numpy())) for mask_XYZ in (true_XYZ, found_XYZ)]
        rows.append([enlarge(panel, PANEL, PANEL, smooth=False) for panel in (flat, *painted)])
    return sheet(rows)


def _share(dataset: PatchDataset, batch_size: int, world: World) -> Iterator[Tensor]:
    """This rank's patches, in order."""
    mine = range(world.rank, len(dataset), world.size)
    for first in range(0, len(mine), batch_size):
        yield dataset.read(mine[first : first + batch_size])


def _predict(unet: nn.Module, batch_NCXYZ: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    batch_NCXYZ = batch_NCXYZ.to(device)
    return unet(batch_NCXYZ[:, :1]), batch_NCXYZ[:, 1:]
