"""Scores of voxel overlap: Dice, precision, recall."""

import numpy as np

from vesselgan.metrics.masks import as_masks


def dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """2 |G and P| / (|G| + |P|) (Subramaniam 2022, equation 3): 1 for equal masks, 0 for disjoint ones.

    Masks of any common shape. Both empty: 1. One empty: 0. DataError: see `as_masks`.
    """
    truth, predicted = as_masks(truth, predicted)
    size = int(np.count_nonzero(truth)) + int(np.count_nonzero(predicted))
    return 2 * int(np.count_nonzero(truth & predicted)) / size if size else 1.0


def precision(truth: np.ndarray, predicted: np.ndarray) -> float:
    """|G and P| / |P|: the fraction of the prediction that is true. Empty prediction: 1 for an empty truth, else 0."""
    return recall(predicted, truth)


def recall(truth: np.ndarray, predicted: np.ndarray) -> float:
    """|G and P| / |G|: the fraction of the truth that is predicted. Empty truth: 1 for an empty prediction, else 0."""
    truth, predicted = as_masks(truth, predicted)
    if size := int(np.count_nonzero(truth)):
        return int(np.count_nonzero(truth & predicted)) / size
    return 0.0 if predicted.any() else 1.0
