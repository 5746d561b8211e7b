"""What an audit compares, patches or whole heads, as arrays on one grid.

A patch becomes block means. A head becomes means over cells of CELL_MM around the centre of what is compared, image,
tree or centreline, so that heads of other grids, and moved ones, can be compared.

N samples, X Y Z cells of the grid (voxels, where said)
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from vesselgan.formats.shards import ShardSet
from vesselgan.metrics.centreline import centreline
from vesselgan.metrics.oriented_distances import block_sizes, on_grid
from vesselgan.privacy.attacks.planted import MAX_SHIFT_VOXELS, plant

CELL_MM = 4.0


class Samples(Protocol):
    """How samples of one kind are read and compared."""

    plural: str
    """`patches` or `volumes`."""
    mirrorings: Sequence[tuple[int, ...]]
    """Axes along which images are mirrored before features are computed."""

    def arrays(self, space: str, samples: Sequence[Any]) -> np.ndarray:
        """float32 [N, X, Y, Z]."""

    def planted(
        self, kind: str, space: str, sample: Any, array_XYZ: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """A copy [X, Y, Z] of a sample whose array in this space is `array_XYZ`."""


def patients_hash(shards: ShardSet) -> str:
    """Of which subjects are whose visits, which the shards' content does not hold."""
    patients = {name: shards.patient_of(name) for name in shards.subjects}
    return hashlib.sha256(json.dumps(patients, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Patch:
    shards: ShardSet
    index: int

    @property
    def patient(self) -> str:
        return self.shards.patient(self.index)

    def read(self, space: str) -> np.ndarray:
        return self.shards.image(self.index) if space == "image" else self.shards.label(self.index)


class Patches:
    plural = "patches"
    mirrorings: Sequence[tuple[int, ...]] = ((),)

    def arrays(self, space: str, samples: Sequence[Patch]) -> np.ndarray:
        bar = tqdm(samples, unit="patch", desc=space, disable=None)
        return on_grid(self._transformed(space, patch.read(space)) for patch in bar)

    def planted(
        self, kind: str, space: str, sample: Patch, array_XYZ: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        patch_XYZ = sample.read(space)
        max_shift = [min(size, MAX_SHIFT_VOXELS) for size in block_sizes(patch_XYZ.shape)]
        copy_XYZ = plant(kind, patch_XYZ, rng, axes=(0, 1, 2), max_shift=max_shift)
        grid_XYZ: np.ndarray = on_grid([self._transformed(space, copy_XYZ)])[0]
        return grid_XYZ

    @staticmethod
    def _transformed(space: str, array_XYZ: np.ndarray) -> np.ndarray:
        """The centreline, blurred by a voxel so that near misses count, of a label; other arrays as they are."""
        if space != "centreline":
            return array_XYZ
        return ndimage.gaussian_filter(centreline(array_XYZ.astype(np.uint8)).astype(np.float32), 1.0)


@dataclass(frozen=True)
class Head:
    patient: str
    shape: tuple[int, ...]
    """Voxels."""
    spacing_mm: tuple[float, ...]
    image: Callable[[], np.ndarray]
    """Voxels of 0 to 255."""
    label: Callable[[], np.ndarray]

    def read(self, space: str) -> np.ndarray:
        array_XYZ = self.image() if space == "image" else self.label()
        return centreline(array_XYZ) if space == "centreline" else array_XYZ


class Heads:
    """On a grid that holds every one of `heads`."""

    plural = "volumes"
    mirrorings: Sequence[tuple[int, ...]] = ((), (0,))

    def __init__(self, heads: Sequence[Head]) -> None:
        extent_mm = np.max([np.multiply(head.shape, head.spacing_mm) for head in heads], axis=0)
        self.cell_mm = max(CELL_MM, *(mm for head in heads for mm in head.spacing_mm))
        self.shape = tuple(int(n) for n in np.ceil(extent_mm / self.cell_mm))

    def arrays(self, space: str, samples: Sequence[Head]) -> np.ndarray:
        return np.stack([self._array(space, head) for head in tqdm(samples, unit="volume", desc=space, disable=None)])

    def planted(
        self, kind: str, space: str, sample: Head, array_XYZ: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Of cells: noise and shifts by a cell are harsher than those of voxels, which the grid averages out."""
        return plant(kind, array_XYZ, rng, axes=(0,), max_shift=(1, 1, 1))

    def _array(self, space: str, head: Head) -> np.ndarray:
        """Around the middle of what is bright; a centreline is blurred by a cell, so that near misses count."""
        cells_XYZ = head.read(space).astype(np.float32)
        # Of voxels above the mean: brightness and contrast do not move it.
        bright_XYZ = cells_XYZ > cells_XYZ.mean()
        middle = ndimage.center_of_mass(bright_XYZ) if bright_XYZ.any() else (np.array(cells_XYZ.shape) - 1) / 2
        for axis, (side, mm) in enumerate(zip(self.shape, head.spacing_mm, strict=True)):
            place_mm = (np.arange(cells_XYZ.shape[axis]) - middle[axis]) * mm
            weights = _weights(place_mm, (np.arange(side) - (side - 1) / 2) * self.cell_mm, self.cell_mm)
            cells_XYZ = np.moveaxis(np.tensordot(weights, cells_XYZ, (1, axis)), 0, axis)
        return ndimage.gaussian_filter(cells_XYZ, 1.0) if space == "centreline" else cells_XYZ


def _weights(place_mm: np.ndarray, cell_mm: np.ndarray, size_mm: float) -> np.ndarray:
    """float32 [cells, voxels]: a voxel's share of a cell, falling linearly to 0 at the next cell's centre."""
    share = np.maximum(0, 1 - np.abs(cell_mm[:, None] - place_mm) / size_mm)
    return (share / np.maximum(share.sum(1, keepdims=True), 1e-6)).astype(np.float32)
