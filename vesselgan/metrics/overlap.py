"""Scores that count voxels."""

import numpy as np

from vesselgan.metrics.masks import as_masks


def dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """2 |G and P| / (|G| + |P|) (Subramaniam 2022, equation 3): 1 for equal masks, 0 for disjoint ones.

    Masks of any, but the same, shape. Both empty: 1. One empty: 0. DataError: see `as_masks`.
    """
    truth, predicted = as_masks(truth, predicted)
    size = int(np.count_nonzero(truth)) + int(np.count_nonzero(predicted))
    return 2 * int(np.count_nonzero(truth & predicted)) / size if size else 1.0


def precision(truth: np.ndarray, predicted: np.ndarray) -> float:
    """|G and P| / |P|: how much of what was predicted is there. Nothing predicted: 1 if nothing is there, else 0."""
    return recall(predicted, truth)


def recall(truth: np.ndarray, predicted: np.ndarray) -> float:
    """|G and P| / |G|: how much of what is there was predicted. Nothing there: 1 if nothing is predicted, else 0."""
    truth, predicted = as_masks(truth, predicted)
    if size := int(np.count_nonzero(truth)):
        return int(np.count_nonzero(truth & predicted)) / size
    return 0.0 if predicted.any() else 1.0
