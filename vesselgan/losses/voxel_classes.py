"""The losses of a critic that classifies voxels: what is given, or that the patch is made (OASIS; Schönfeld 2021).

A class is what is given of a voxel: background and vessel, or with a tissue map outside, head, brain and vessel; one
more means "made". Shapes: N batch, C channel, G given channel (0 vessel label, 1 tissue map), K class, X Y Z voxels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vesselgan.losses.segmentation import sum_over_ranks


def one_hot_classes(given_NGXYZ: Tensor, num_classes: int) -> Tensor:
    """float32 [N, K, X, Y, Z], 1 at a voxel's class. given_NGXYZ: label 0 or 1; tissue map 0, 0.5, 1."""
    vessel_NXYZ = given_NGXYZ[:, 0] > 0.5
    tissue_NXYZ = torch.zeros_like(vessel_NXYZ, dtype=torch.long)
    if given_NGXYZ.shape[1] > 1:
        tissue_NXYZ = (2 * given_NGXYZ[:, 1]).round().long()
    class_NXYZ = tissue_NXYZ.masked_fill(vessel_NXYZ, num_classes - 1)
    return F.one_hot(class_NXYZ, num_classes).movedim(-1, 1).float()


def balanced_weights(one_hot_NKXYZ: Tensor) -> Tensor:
    """[K]: every class that the batch of all ranks holds weighs as much as any other, the mean voxel 1.

    Else vessels, a fortieth of the voxels, would count for little.
    """
    counts_K = sum_over_ranks(one_hot_NKXYZ.sum((0, 2, 3, 4)))
    return counts_K.sum() / (counts_K.clamp_min(1) * (counts_K > 0).sum())


def classification_loss(logits_NKXYZ: Tensor, one_hot_NKXYZ: Tensor, weights_K: Tensor) -> Tensor:
    """Mean weighted cross-entropy of logits of K + 1 classes against what is given; the generator's loss, too."""
    # Not torch's cross_entropy: on a GPU it has no deterministic kernel for volumes.
    log_p_NKXYZ = logits_NKXYZ.float().log_softmax(1)[:, :-1]
    return -(log_p_NKXYZ * one_hot_NKXYZ * weights_K.view(1, -1, 1, 1, 1)).sum(1).mean()


def made_loss(logits_NKXYZ: Tensor) -> Tensor:
    """Mean cross-entropy against the last class, "made"."""
    return -logits_NKXYZ.float().log_softmax(1)[:, -1].mean()
