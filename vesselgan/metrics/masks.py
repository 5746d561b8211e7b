"""Checks of the masks that the scores take."""

import numpy as np

from vesselgan.core.errors import DataError


def as_masks(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays as bool.

    DataError for different shapes and for values that are neither 0 nor 1 (probabilities, several classes).
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise DataError(
            f"masks of different shapes: truth {truth.shape}, predicted {predicted.shape}; "
            "bring both onto one grid before scoring"
        )
    return _as_mask(truth, "truth"), _as_mask(predicted, "predicted")


def _as_mask(array: np.ndarray, side: str) -> np.ndarray:
    if array.dtype == np.bool_:
        return array
    foreign = array[(array != 0) & (array != 1)]
    if foreign.size:
        raise DataError(
            f"{side} is no mask: {foreign.size} voxels are neither 0 nor 1 (the first is {foreign.flat[0]}); "
            "apply a threshold first"
        )
    return array.astype(bool)
