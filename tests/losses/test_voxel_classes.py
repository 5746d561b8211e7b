"""The critic's classification of voxels against sums by hand and torch's own cross-entropy."""

import math

import pytest
import torch
import torch.nn.functional as F

from vesselgan.losses.voxel_classes import balanced_weights, classification_loss, made_loss, one_hot_classes

OUTSIDE, HEAD, BRAIN, VESSEL = range(4)


def given(label: list[float], tissue: list[float]) -> torch.Tensor:
    """One patch of a row of voxels."""
    return torch.tensor([[label, tissue]]).view(1, 2, -1, 1, 1)


def test_a_vessel_is_a_vessel_in_every_tissue():
    one_hot = one_hot_classes(given([0, 0, 0, 1, 1], [0, 0.5, 1, 0.5, 1]), 4)
    assert one_hot.shape == (1, 4, 5, 1, 1) and one_hot.dtype == torch.float32
    assert one_hot.argmax(1).flatten().tolist() == [OUTSIDE, HEAD, BRAIN, VESSEL, VESSEL]
    assert one_hot.sum(1).eq(1).all()
    alone = one_hot_classes(given([0, 1, 0], [0, 0, 0])[:, :1], 2)
    assert alone.argmax(1).flatten().tolist() == [0, 1, 0]


def test_classes_weigh_alike_and_a_mean_voxel_one():
    one_hot = one_hot_classes(given([0, 0, 0, 1], [0.5, 0.5, 0.5, 1]), 4)
    weights = balanced_weights(one_hot)
    # Two classes of three voxels and one: 4 / (3 * 2) and 4 / (1 * 2).
    assert weights[HEAD] == pytest.approx(2 / 3) and weights[VESSEL] == pytest.approx(2.0)
    assert (one_hot * weights.view(1, -1, 1, 1, 1)).sum().item() == pytest.approx(4.0)
    assert weights.isfinite().all()  # of those that are not there, too


def test_the_losses_are_cross_entropies():
    torch.manual_seed(1)
    logits = torch.randn(2, 5, 3, 3, 3, dtype=torch.float32)
    one_hot = one_hot_classes(torch.cat([torch.rand(2, 1, 3, 3, 3).round(), torch.rand(2, 1, 3, 3, 3).round()], 1), 4)
    weights = balanced_weights(one_hot)
    classes = one_hot.argmax(1)
    expected = (F.cross_entropy(logits, classes, reduction="none") * weights[classes]).mean()
    torch.testing.assert_close(classification_loss(logits, one_hot, weights), expected)
    torch.testing.assert_close(made_loss(logits), F.cross_entropy(logits, torch.full_like(classes, 4)))
    # A critic that says nothing: every class and "made" alike.
    silent = torch.zeros_like(logits)
    assert classification_loss(silent, one_hot, weights).item() == pytest.approx(math.log(5))
    assert made_loss(silent.half()).dtype == torch.float32


def test_micro_batches_are_the_batch():
    """The loss of a batch is the mean of its halves', with the weights of the whole."""
    torch.manual_seed(2)
    logits, patch = torch.randn(4, 5, 2, 2, 2), torch.rand(4, 2, 2, 2, 2).round()
    one_hot = one_hot_classes(patch, 4)
    weights = balanced_weights(one_hot)
    whole = classification_loss(logits, one_hot, weights)
    halves = [classification_loss(*pair, weights) for pair in zip(logits.chunk(2), one_hot.chunk(2), strict=True)]
    torch.testing.assert_close(sum(halves) / 2, whole)
