"""Statistics of a whole labelled volume: seams between windows, and its vessels inside and outside the brain.

X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vesselgan.core.errors import DataError, UsageError
from vesselgan.metrics.centreline import centreline, count_components
from vesselgan.metrics.label_statistics import consistency, radii_mm, skeleton_length_mm
from vesselgan.metrics.masks import LARGEST, as_finite, as_mask, as_spacing

BESIDE = 3
"""Voxels between a border and the planes that it is compared with."""


@dataclass(frozen=True)
class VolumeStatistics:
    """Undefined values (no vessel, nothing but vessel) are None, or an empty array."""

    vessel_fraction: float
    brain_share: float | None
    """Of the vessel voxels, in the brain mask."""
    num_components: int
    """26-connectivity."""
    centreline_mm: float
    """See `skeleton_length_mm`."""
    consistency: float | None
    """Of image and label: see `label_statistics.consistency`."""
    brain_radius_mm: np.ndarray
    """Of every centreline voxel in the brain mask: distance to the nearest unlabelled voxel."""
    outside_radius_mm: np.ndarray
    """The same outside it: neck, face, scalp."""


def volume_statistics(
    image_XYZ: np.ndarray, label_XYZ: np.ndarray, mask_XYZ: np.ndarray, spacing_mm: Sequence[float]
) -> VolumeStatistics:
    """DataError for a label or a mask of other values than 0 and 1, and for grids that differ."""
    vessel_XYZ, brain_XYZ = as_mask(label_XYZ, "label", ndim=3), as_mask(mask_XYZ, "mask", ndim=3)
    as_spacing(spacing_mm, 3)
    if brain_XYZ.shape != vessel_XYZ.shape:
        raise DataError(f"label of shape {vessel_XYZ.shape}, mask of {brain_XYZ.shape}: bring both onto one grid")
    skeleton_XYZ = centreline(vessel_XYZ)
    radius_mm = radii_mm(vessel_XYZ, skeleton_XYZ, spacing_mm)
    is_brain = brain_XYZ[skeleton_XYZ] if radius_mm.size else np.zeros(0, bool)
    return VolumeStatistics(
        vessel_fraction=float(vessel_XYZ.mean()),
        brain_share=float(brain_XYZ[vessel_XYZ].mean()) if vessel_XYZ.any() else None,
        num_components=count_components(vessel_XYZ),
        centreline_mm=skeleton_length_mm(skeleton_XYZ, spacing_mm),
        consistency=consistency(image_XYZ, vessel_XYZ),
        brain_radius_mm=radius_mm[is_brain],
        outside_radius_mm=radius_mm[~is_brain],
    )


def seam_statistic(image_XYZ: np.ndarray, borders: Sequence[Sequence[int]]) -> float:
    """Gradient energy across the borders of windows over that of the planes beside them, mean of the axes; 1: no seams.

    borders: for each axis the voxels that a window begins with or ends before. The energy of a plane is the mean square
    of the difference of the voxels on its sides; compared are planes at most BESIDE voxels away, as a head has more
    edges in some places than in others. UsageError for borders that leave nothing to compare.
    """
    image_XYZ = as_finite(image_XYZ, "image", largest=LARGEST)
    ratios = []
    for axis, voxels in enumerate(borders):
        side = image_XYZ.shape[axis]
        planes = np.moveaxis(image_XYZ, axis, 0)
        energies = [float(np.square(planes[i] - planes[i - 1].astype(np.float64)).mean()) for i in range(1, side)]
        energy = dict(enumerate(energies, 1))
        beside = {i: [j for j in energy if abs(i - j) <= BESIDE and j not in voxels] for i in voxels}
        pairs = [(energy[i], np.mean([energy[j] for j in near])) for i, near in beside.items() if i in energy and near]
        on_borders, elsewhere = (float(np.sum(side)) for side in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
        if not elsewhere > 0:
            raise UsageError(f"axis {axis}: no border with a plane beside it, or an image that is constant there")
        ratios.append(on_borders / elsewhere)
    return float(np.mean(ratios))
