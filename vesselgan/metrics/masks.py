"""Checks of the arrays that the scores take, so that their memory layout never matters."""

import math
from collections.abc import Sequence

import numpy as np

from vesselgan.core.errors import DataError

LARGEST = 1e6
"""Of features and intensities: squares of larger ones leave no digits of a distance of order 1 in double precision."""


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
    return as_mask(masks[0], "truth"), as_mask(masks[1], "predicted")


def as_array(values: object, name: str, *, ndim: int | None = None) -> np.ndarray:
    """`values` as an array of real numbers, of `ndim` axes; DataError if it is none."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises RuntimeError for a tensor with a gradient
        raise DataError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} holds {array.dtype}, not real numbers")
    if ndim is not None and array.ndim != ndim:
        raise DataError(f"{name} has shape {array.shape}: expected {ndim} axes")
    return array


def as_finite(values: object, name: str, *, largest: float = math.inf, ndim: int | None = None) -> np.ndarray:
    """`values` as in `as_array`; DataError for NaN, infinite values and sizes from `largest` on."""
    array = as_array(values, name, ndim=ndim)
    if array.size and not (-largest < array.min() and array.max() < largest):  # a NaN fails both
        bound = f" and below {largest:g} in size" if largest < math.inf else ""
        raise DataError(f"{name} lies between {array.min()} and {array.max()}: expected finite numbers{bound}")
    return array


def as_mask(values: object, side: str, *, ndim: int | None = None) -> np.ndarray:
    """`values`, as in `as_array`, as bool in C order; DataError for others than 0 and 1."""
    array = as_array(values, side, ndim=ndim)
    foreign = array[(array != 0) & (array != 1)]
    if foreign.size:
        raise DataError(
            f"{side} is no mask: {foreign.size} voxels are neither 0 nor 1 (the first is {foreign.flat[0]}); "
            "apply a threshold first"
        )
    return np.ascontiguousarray(array, dtype=bool)


def as_spacing(spacing_mm: Sequence[float], ndim: int) -> np.ndarray:
    """The edges of a voxel, float64 [ndim]; DataError unless they are finite lengths above 0, one per axis."""
    spacing = as_array(spacing_mm, "spacing_mm").astype(float)
    if spacing.shape != (ndim,) or not np.all((spacing > 0) & (spacing < LARGEST)):
        raise DataError(f"spacing_mm={spacing_mm}: expected {ndim} lengths above 0, below {LARGEST:g}")
    return spacing
