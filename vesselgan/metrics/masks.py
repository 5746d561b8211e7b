"""Checks of the arrays that the scores take, so that their memory layout never matters."""

import numpy as np

from vesselgan.core.errors import DataError


def as_masks(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays as bool, in C order.

    DataError for different shapes, for numbers in place of arrays, and for values that are neither 0 nor 1
    (probabilities, several classes).
    """
    masks = as_array(truth, "truth"), as_array(predicted, "predicted")
    if masks[0].shape != masks[1].shape or masks[0].ndim == 0:
        raise DataError(
            f"masks of different shapes: truth {masks[0].shape}, predicted {masks[1].shape}; "
            "bring both onto one grid before scoring"
            if masks[0].ndim
            else "a number is no mask; score arrays with at least one axis"
        )
    return _as_mask(masks[0], "truth"), _as_mask(masks[1], "predicted")


def as_array(values: object, name: str) -> np.ndarray:
    """`values` as an array of real numbers; DataError if it is none."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises RuntimeError for a tensor with a gradient
        raise DataError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} holds {array.dtype}, not real numbers")
    return array


def _as_mask(array: np.ndarray, side: str) -> np.ndarray:
    foreign = array[(array != 0) & (array != 1)]
    if foreign.size:
        raise DataError(
            f"{side} is no mask: {foreign.size} voxels are neither 0 nor 1 (the first is {foreign.flat[0]}); "
            "apply a threshold first"
        )
    return np.ascontiguousarray(array, dtype=bool)
