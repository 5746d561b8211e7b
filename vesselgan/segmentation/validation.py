"""Scores of a U-Net on the real validation patches; they choose the checkpoint and end the run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vesselgan.core.errors import NumericError
from vesselgan.data.patches import ShardDataset
from vesselgan.losses.segmentation import soft_dice, sum_over_ranks
from vesselgan.runtime import checkpoint
from vesselgan.runtime.distributed import World
from vesselgan.trainer.checkpointer import CheckpointPart
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session
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


class Validation(CheckpointPart):
    """Owns when the U-Net is validated, which checkpoint is the best, and when early stopping ends the run."""

    num_protected = 1

    def __init__(self, session: Session, schedule: Schedule, network: nn.Module, dataset: ShardDataset) -> None:
        self._session, self._schedule, self._network, self._dataset = session, schedule, network, dataset
        self._selection = Selection(**session.state.get("selection", {}))

    def run_if_due(self, step: int) -> None:
        """Score the U-Net, log scores and an image, and update the choice of the best. A collective call."""
        session, unet = self._session, self._session.config.unet
        if not self._schedule.is_due(step, unet.validate_every):
            return
        scores = validate(self._network, self._dataset, batch_size=unet.batch_size, world=session.world)
        if not np.isfinite(scores.loss):
            raise NumericError(
                f"{session.run_dir}: validation loss not finite at step {step}; train with a lower unet.learning_rate "
                "or with unet.precision=fp32, in a new run directory"
            )
        session.log.scalars(step, {f"validation/{name}": value for name, value in asdict(scores).items()})
        if session.log.is_main:
            image_HWC = validation_image(self._network, self._dataset, session.world.device)
            session.log.image(step, "validation", image_HWC)
        self._selection = self._selection.after(checkpoint.name_of(step), scores)
        session.log.line(
            f"step {step}/{self._schedule.stop}  validation loss {scores.loss:+.4f}  Dice {scores.dice:.4f}"
            f"{'  best so far' if self._selection.num_worse == 0 else ''}"
        )

    @property
    def is_over(self) -> bool:
        """Whether early stopping ends the run."""
        return self._selection.num_worse >= self._session.config.unet.patience

    def facts(self) -> dict[str, Any]:
        """For the facts of a finished run."""
        best = self._selection
        return {
            "best_checkpoint": best.best_checkpoint,
            "validation_loss": best.best_loss,
            "validation_dice": best.best_dice,
        }

    def state(self) -> dict[str, Any]:
        return {"selection": asdict(self._selection)}

    def protected(self) -> list[str]:
        return [self._selection.best_checkpoint] if self._selection.best_checkpoint else []


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
