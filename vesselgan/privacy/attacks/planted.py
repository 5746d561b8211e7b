"""Copies of training patches, planted to measure which share of such copies an audit of this very set finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.stats import binomtest

from vesselgan.privacy.attacks.copies import SHARE, CopyTest

NUM_PLANTED = 100
"""Of each kind."""
NOISE = 0.2
"""Standard deviations of the patch that are added to a noisy copy."""
MAX_SHIFT_VOXELS = 2
"""Of patches."""
SHARES = (SHARE, SHARE / 10)
"""Of copies among the generated patches, whose discovery has a stated probability."""
IMAGE_KINDS = ("noisy", "mirrored", "shifted", "all_three")
LABEL_ONLY = "label_only"
"""A training label, mirrored and shifted, below another image."""
SPACES = {"image": IMAGE_KINDS, "label": (LABEL_ONLY,), "centreline": (LABEL_ONLY,)}
"""Where a kind is looked for."""


@dataclass(frozen=True)
class Planted:
    kind: str
    space: str
    """Where it is found best."""
    planted: int
    found: int
    interval: list[float]
    """Of the share found, 95 %, Clopper-Pearson."""
    power: dict[str, float]
    """Share of copies among the generated patches -> the chance that they are found."""

    @property
    def share_found(self) -> float:
        return self.found / self.planted if self.planted else 0.0


def plant(
    kind: str, array_XYZ: np.ndarray, rng: np.random.Generator, *, axes: Sequence[int], max_shift: Sequence[int]
) -> np.ndarray:
    """A copy of an image, or of a label for LABEL_ONLY. Labels stay 0 and 1.

    Mirrored along some of `axes`, and of a square whose axes are all mirrored X and Y may be exchanged; shifted by at
    most `max_shift` along each.
    """
    copy_XYZ = np.asarray(array_XYZ, np.float32)
    if kind != "noisy" and kind != "shifted":
        mirrored = [axis for axis in axes if rng.integers(2)] or [axes[int(rng.integers(len(axes)))]]
        copy_XYZ = np.flip(copy_XYZ, tuple(mirrored))
        if len(axes) == 3 and copy_XYZ.shape[0] == copy_XYZ.shape[1] and rng.integers(2):
            copy_XYZ = copy_XYZ.swapaxes(0, 1)
    if kind in ("shifted", "all_three", LABEL_ONLY):
        shift = [int(rng.integers(1, most + 1)) for most in max_shift]
        copy_XYZ = ndimage.shift(copy_XYZ, rng.choice((-1, 1), 3) * shift, order=0, mode="nearest")
    if kind in ("noisy", "all_three"):
        copy_XYZ = copy_XYZ + NOISE * copy_XYZ.std() * rng.normal(size=copy_XYZ.shape).astype(np.float32)
    return np.ascontiguousarray(copy_XYZ)


def found_of(kind: str, values: Mapping[str, np.ndarray], tests: Mapping[str, CopyTest]) -> Planted:
    """How many of the planted copies lie below a test's threshold; values: space -> the copies' values [K].

    Of several spaces the one that finds most counts.
    """
    candidates = [_found_in(kind, space, values[space], tests[space]) for space in values if kind in SPACES[space]]
    return max(candidates, key=lambda one: (one.power[f"{SHARE:g}"], one.found))


def _found_in(kind: str, space: str, value_K: np.ndarray, test: CopyTest) -> Planted:
    found, planted = int((value_K < test.threshold).sum()), len(value_K)
    share = found / planted if planted else 0.0
    limits = binomtest(found, planted).proportion_ci(0.95, "exact") if planted else None
    return Planted(
        kind=kind,
        space=space,
        planted=planted,
        found=found,
        interval=[0.0, 1.0] if limits is None else [float(limits.low), float(limits.high)],
        power={f"{of:g}": test.power(of * share) for of in SHARES},
    )


def least_power(planted: Sequence[Planted]) -> Planted:
    """The kind of copies that would be missed most."""
    return min(planted, key=lambda one: one.power[f"{SHARE:g}"])
