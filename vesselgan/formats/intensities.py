"""The scaling of intensities: of a volume to 0..255, and of a patch between 0..255 and its stored form."""

# X Y Z voxels

from collections.abc import Sequence

import numpy as np

from vesselgan.core.errors import DataError, UsageError

SCALINGS = ("volume", "patch")
STEPS_PER_UNIT = 257  # 65535 / 255
MAX_EMPTY_SHARE = 0.25  # of the range between the limits, below the median: tissue is dense there, padding is not
_LARGEST = float(np.finfo(np.float32).max)


def intensity_limits(image_XYZ: np.ndarray, percentiles: Sequence[float]) -> tuple[float, float]:
    """The intensities that become 0 and 255: these two percentiles of the voxels that are not zero.

    Raises DataError if the two are equal.
    """
    voxels = image_XYZ[image_XYZ != 0]
    if voxels.size == 0:
        raise DataError("every voxel of the image is zero; remove it from the cohort")
    lower, upper = percentiles
    low = float(np.percentile(voxels, lower) if lower else voxels.min())
    high = float(np.percentile(voxels, upper))
    if not low < high:
        raise DataError(
            f"the non-zero voxels between the percentiles {lower:g} and {upper:g} are all {low:g}: "
            "nothing to scale; is this an image and not a label?"
        )
    widest = max(abs(float(image_XYZ.min()) - low), abs(float(image_XYZ.max()) - low))
    if 255.0 / (high - low) > _LARGEST or widest > _LARGEST:
        raise DataError(
            f"intensities from {low:g} to {high:g} cannot be scaled in single precision; store them in other units"
        )
    return low, high


def num_outside(image_XYZ: np.ndarray, limits: tuple[float, float]) -> int:
    """Voxels that scaling clips; zero is background and does not count."""
    low, high = limits
    return int(np.count_nonzero(((image_XYZ < low) | (image_XYZ > high)) & (image_XYZ != 0)))


def widest_gap_below(image_XYZ: np.ndarray, limits: tuple[float, float]) -> tuple[float, float, float]:
    """(start, stop) of the widest interval without a voxel from the lower limit to the median, and the share below.

    Of the voxels that are not zero.
    """
    voxels = image_XYZ[image_XYZ != 0]
    below = np.unique(voxels[(voxels >= limits[0]) & (voxels <= np.median(voxels))])
    if below.size < 2:
        return limits[0], limits[0], 0.0
    widest = int(np.argmax(np.diff(below)))
    start, stop = float(below[widest]), float(below[widest + 1])
    return start, stop, float(np.mean(voxels <= start))


def padding_problem(image_XYZ: np.ndarray, limits: tuple[float, float]) -> str | None:
    """How a padding value far below the tissue would leave it a small part of 0..255; None if there is none."""
    low, high = limits
    start, stop, share = widest_gap_below(image_XYZ, limits)
    if stop - start <= MAX_EMPTY_SHARE * (high - low):
        return None
    return (
        f"no voxel lies between {start:g} and {stop:g}, and {share:.3%} of the non-zero ones below: vessels would be "
        f"squeezed into {255 * (stop - low) / (high - low):.0f}..255; set what is no tissue to 0, or prepare a cohort "
        f"with data.prepare.lower_percentile above {100 * share:.4g}"
    )


def scale_to_255(image_XYZ: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """float32 in [0, 255]: `limits` become 0 and 255, what lies outside is clipped."""
    low, high = limits
    scaled_XYZ = (image_XYZ - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.clip(scaled_XYZ, 0.0, 255.0, out=scaled_XYZ)


def to_stored(image_XYZ: np.ndarray) -> np.ndarray:
    """uint16, as shards store it, from float32 in [0, 255]. Raises DataError for values outside and for NaN."""
    if not (image_XYZ.min() >= 0 and image_XYZ.max() <= 255):  # a NaN fails both
        raise DataError("image outside [0, 255] or not finite; scale the volume to 0..255 first")
    return np.rint(image_XYZ * np.float32(STEPS_PER_UNIT)).astype(np.uint16)


def from_stored(stored_XYZ: np.ndarray, scaling: str = "volume") -> np.ndarray:
    """float32 in [0, 255] from an image as stored (uint16).

    `volume`: the limits of the whole volume, as the record was made. `patch`: the authors' minimum and maximum of each
    patch; a constant patch becomes 0. Raises UsageError for any other value.
    """
    if scaling == "volume":
        return np.divide(stored_XYZ, np.float32(STEPS_PER_UNIT), dtype=np.float32)
    check_scaling(scaling)
    low, high = int(stored_XYZ.min()), int(stored_XYZ.max())
    # 65535 * 255 is exact in float32, so the largest voxel becomes 255 exactly.
    return (stored_XYZ - np.uint16(low)).astype(np.float32) * np.float32(255) / np.float32(max(high - low, 1))


def check_scaling(scaling: str) -> None:
    if scaling not in SCALINGS:
        raise UsageError(f"data.scaling={scaling!r} is not one of {', '.join(SCALINGS)}")
