"""Where patches lie in a volume: a covering grid, and patches centred on vessels (Subramaniam 2022, section 2.2)."""

# X Y Z voxels of the canonical grid, N patches

import hashlib
from collections.abc import Sequence

import numpy as np

from vesselgan.core.errors import DataError


def grid_corners(shape: Sequence[int], patch_shape: Sequence[int]) -> np.ndarray:
    """First voxels of a grid of patches that covers every voxel, int64 [N, 3], the last axis fastest.

    ceil(extent / patch) positions per axis, spread evenly from edge to edge: 3 x 3 x 2 patches of 128 x 128 x 64 for
    the paper's 312 x 384 x 127. DataError where the volume is thinner than the patch.
    """
    _check_not_thin(shape, patch_shape)
    axes = []
    for extent, size in zip(shape, patch_shape, strict=True):
        gaps = -(-extent // size) - 1
        axes.append([0] if gaps == 0 else [i * (extent - size) // gaps for i in range(gaps + 1)])
    return np.array(np.meshgrid(*axes, indexing="ij"), dtype=np.int64).reshape(3, -1).T


def vessel_corners(
    label_XYZ: np.ndarray, patch_shape: Sequence[int], count: int, *, seed: int, subject: str, purpose: str
) -> np.ndarray:
    """First voxels of `count` patches centred on vessel voxels drawn evenly, int64 [count, 3].

    A centre too near to an edge is moved inward, so that no patch leaves the volume. The draw depends on seed, subject
    and purpose alone, not on the order of subjects. Fewer vessel voxels than `count`: drawn with
    replacement. DataError for an empty label.
    """
    _check_not_thin(label_XYZ.shape, patch_shape)
    vessel_N = np.flatnonzero(label_XYZ)
    if vessel_N.size == 0 and count > 0:
        raise DataError(f"{subject}: the label is empty, so no patch can be centred on a vessel; take the subject out")
    key = hashlib.sha256(f"{seed}/{purpose}/{subject}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(key[:16], "little"))
    chosen_N = rng.choice(vessel_N, size=count, replace=vessel_N.size < count) if count else vessel_N[:0]
    centres_N3 = np.stack(np.unravel_index(chosen_N, label_XYZ.shape), axis=1).astype(np.int64)
    size_3 = np.asarray(patch_shape, dtype=np.int64)
    return np.clip(centres_N3 - size_3 // 2, 0, np.asarray(label_XYZ.shape) - size_3)


def cut(volume_XYZ: np.ndarray, corner: Sequence[int], patch_shape: Sequence[int]) -> np.ndarray:
    """The patch of `volume_XYZ` whose first voxel is `corner`, contiguous."""
    window = tuple(slice(int(start), int(start) + size) for start, size in zip(corner, patch_shape, strict=True))
    patch_XYZ = np.ascontiguousarray(volume_XYZ[window])
    assert patch_XYZ.shape == tuple(patch_shape), f"patch at {tuple(corner)} leaves the volume {volume_XYZ.shape}"
    return patch_XYZ


def padded_shape(shape: Sequence[int], patch_shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape after `reflect_pad`: at least the patch on every axis."""
    x, y, z = (max(extent, size) for extent, size in zip(shape, patch_shape, strict=True))
    return x, y, z


def reflect_pad(volume_XYZ: np.ndarray, patch_shape: Sequence[int]) -> np.ndarray:
    """Reflect the volume at its far edges until it holds one patch; voxel indices keep their meaning."""
    padded = padded_shape(volume_XYZ.shape, patch_shape)
    if padded == volume_XYZ.shape:
        return volume_XYZ
    return np.pad(volume_XYZ, [(0, p - n) for p, n in zip(padded, volume_XYZ.shape, strict=True)], mode="reflect")


def _check_not_thin(shape: Sequence[int], patch_shape: Sequence[int]) -> None:
    if any(extent < size for extent, size in zip(shape, patch_shape, strict=True)):
        raise DataError(
            f"a volume of {' x '.join(map(str, shape))} voxels is thinner than the patch "
            f"{' x '.join(map(str, patch_shape))}: data.prepare.reflect_pad=true reflects it at its far edge, "
            "a smaller data.prepare.patch_shape fits, or take it out"
        )
