"""What the vessel labels of patches look like, and whether each label fits its image.

Per patch, so that real and synthetic sets can be held against each other as distributions. X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse, stats

from vesselgan.metrics.centreline import TOUCHING, centreline

# Statistic -> unit. The first five give one value per patch; radius one per centreline voxel, size one per component.
UNITS = {
    "vessel_fraction": "1",
    "num_components": "1",
    "centreline_mm": "mm",
    "contrast": "intensity of 0..255",
    "consistency": "1",
    "radius_mm": "mm",
    "component_voxels": "voxel",
}
RIM = 3  # voxels around a label that its vessel is compared with


@dataclass(frozen=True)
class LabelStatistics:
    """One patch. Values that are not defined (an empty or a full label) are missing: None, or an empty array."""

    vessel_fraction: float
    num_components: int
    """Parts that touch by faces, edges or corners."""
    centreline_mm: float
    """Length of the skeleton: the shortest set of steps between touching voxels that joins each part of it."""
    contrast: float | None
    """Mean intensity of the labelled voxels minus that of the rim: unlabelled, at most RIM voxels away."""
    consistency: float | None
    """See `consistency`."""
    radius_mm: np.ndarray
    """For every voxel of the skeleton, how far the nearest unlabelled voxel is, centre to centre."""
    component_voxels: np.ndarray
    """The size of every part."""


def label_statistics(image_XYZ: np.ndarray, label_XYZ: np.ndarray, spacing_mm: Sequence[float]) -> LabelStatistics:
    """Everything about one patch: image in [0, 255], label {0, 1}. What lies beyond the patch is not guessed."""
    vessel_XYZ = label_XYZ.astype(bool)
    parts_XYZ, num_components = ndimage.label(vessel_XYZ, TOUCHING)
    skeleton_XYZ = centreline(vessel_XYZ)
    inside_V, rim_V = _inside_and_rim(image_XYZ, vessel_XYZ)
    radius_mm = np.zeros(0)
    if num_components and not vessel_XYZ.all():
        radius_mm = ndimage.distance_transform_edt(vessel_XYZ, sampling=spacing_mm)[skeleton_XYZ]
    return LabelStatistics(
        vessel_fraction=float(vessel_XYZ.mean()),
        num_components=int(num_components),
        centreline_mm=skeleton_length_mm(skeleton_XYZ, spacing_mm),
        contrast=float(inside_V.mean() - rim_V.mean()) if inside_V.size and rim_V.size else None,
        consistency=_brighter(inside_V, rim_V),
        radius_mm=radius_mm,
        component_voxels=np.bincount(parts_XYZ.ravel())[1:],
    )


def consistency(image_XYZ: np.ndarray, label_XYZ: np.ndarray) -> float | None:
    """Chance that a labelled voxel is brighter than an unlabelled one at most RIM voxels away; ties count half.

    1: the label holds the bright vessel and all of it; 0.5: it has nothing to do with the image. The area under the
    ROC curve near the label, so it does not change with the brightness or contrast of the patch. None for a label that
    is empty or has no rim.
    """
    return _brighter(*_inside_and_rim(image_XYZ, label_XYZ.astype(bool)))


def shifted(label_XYZ: np.ndarray, voxels: int = 2) -> np.ndarray:
    """The label moved along every axis; what enters is empty. A control: a label that is out of place."""
    moved_XYZ = np.zeros_like(label_XYZ)
    moved_XYZ[voxels:, voxels:, voxels:] = label_XYZ[:-voxels, :-voxels, :-voxels]
    return moved_XYZ


def skeleton_length_mm(skeleton_XYZ: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Length of the minimum spanning forest over touching voxels; a single voxel has none, a ring lacks one step."""
    number_XYZ = np.full(np.add(skeleton_XYZ.shape, 2), -1)
    inner = (slice(1, -1),) * 3
    voxels_V3 = np.argwhere(skeleton_XYZ)
    number_XYZ[inner][skeleton_XYZ] = np.arange(len(voxels_V3))
    if not len(voxels_V3):
        return 0.0
    rows, columns, lengths = [], [], []
    # Half of the 26 neighbours: each pair once.
    for step in [s for s in np.ndindex(3, 3, 3) if s > (1, 1, 1)]:
        beside_V = number_XYZ[tuple((voxels_V3 + step).T)]
        found_V = beside_V >= 0
        rows.append(np.flatnonzero(found_V))
        columns.append(beside_V[found_V])
        length = float(np.linalg.norm((np.array(step) - 1) * np.asarray(spacing_mm)))
        lengths.append(np.full(int(found_V.sum()), length))
    places = (np.concatenate(rows), np.concatenate(columns))
    graph = sparse.coo_matrix((np.concatenate(lengths), places), shape=(len(voxels_V3), len(voxels_V3)))
    return float(sparse.csgraph.minimum_spanning_tree(graph.tocsr()).sum())


def values_of(patches: Sequence[LabelStatistics], name: str) -> np.ndarray:
    """All values of one statistic over the patches, float64; those not defined are left out."""
    values = [getattr(patch, name) for patch in patches]
    known = [np.atleast_1d(value) for value in values if value is not None]
    return np.concatenate(known).astype(np.float64) if known else np.zeros(0)


def distance(first: np.ndarray, second: np.ndarray) -> float | None:
    """Wasserstein-1 distance of two samples of one statistic, in its unit; None where either is empty."""
    return float(stats.wasserstein_distance(first, second)) if first.size and second.size else None


def _inside_and_rim(image_XYZ: np.ndarray, vessel_XYZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    near_XYZ = ndimage.maximum_filter(vessel_XYZ, 2 * RIM + 1) & ~vessel_XYZ
    return image_XYZ[vessel_XYZ], image_XYZ[near_XYZ]


def _brighter(inside_V: np.ndarray, rim_V: np.ndarray) -> float | None:
    """Mann and Whitney's U over its largest value."""
    if not inside_V.size or not rim_V.size:
        return None
    ranks = stats.rankdata(np.concatenate([inside_V, rim_V]))[: inside_V.size]
    above = ranks.sum() - inside_V.size * (inside_V.size + 1) / 2
    return float(above / (inside_V.size * rim_V.size))
