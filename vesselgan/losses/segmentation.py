"""The segmentation losses on probabilities: negative Dice (Hilbert 2020), alone or with cross-entropy.

Shapes: any, but the same, for probability and label.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SMOOTH = 1.0
MIN_PROBABILITY = 1e-6


def dice_loss(probability: Tensor, label: Tensor) -> Tensor:
    """-(2 sum(p y) + 1) / (sum(p) + sum(y) + 1) over all voxels of the global batch (the published loss).

    Scalar, float32. With torch.distributed on more than one rank the sums run over all ranks: loss and rank-averaged
    gradient are those of the whole batch. Without vessel in the batch it is -1 / (sum(p) + 1).
    """
    probability, label = probability.float(), label.float()
    overlap = (probability * label).sum()
    return -soft_dice(sum_over_ranks(torch.stack([overlap, probability.sum(), label.sum()])))


def dice_ce_loss(probability: Tensor, label: Tensor) -> Tensor:
    """dice_loss + mean binary cross-entropy over all voxels of the global batch (nnU-Net's loss).

    Scalar, float32; over ranks like dice_loss. Probabilities are clamped to MIN_PROBABILITY from 0 and 1.
    """
    # torch's own aborts the process at a NaN; here the loss becomes NaN and the step is skipped.
    p, y = probability.float().clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY), label.float()
    entropy = -(y * p.log() + (1 - y) * (1 - p).log()).sum()
    total, count = sum_over_ranks(torch.stack([entropy, entropy.new_tensor(y.numel())])).unbind()
    return dice_loss(probability, label) + total / count


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"dice": dice_loss, "dice_ce": dice_ce_loss}


def soft_dice(sums: Tensor) -> Tensor:
    """(2 o + 1) / (p + y + 1) from the sums [o, p, y] of overlap, prediction and label."""
    overlap, predicted, true = sums.unbind(-1)
    return (2 * overlap + SMOOTH) / (predicted + true + SMOOTH)


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values` summed over the ranks; differentiable. The tensor itself on one rank."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    return _SumOverRanks.apply(values)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank holds the same loss, so each contributes the same gradient.
        return gradient * dist.get_world_size()
