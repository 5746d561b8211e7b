"""Statistics of the vessel labels of patches, and how well each label fits its image.

One value or array per patch: real and synthetic sets are compared as distributions. X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse, stats

from vesselgan.core.errors import DataError
from vesselgan.metrics.centreline import TOUCHING, centreline
from vesselgan.metrics.masks import LARGEST, as_array, as_finite, as_mask, as_spacing

# Statistic -> unit. One value per patch, except radius_mm (per centreline voxel) and component_voxels (per component).
UNITS = {
    "vessel_fraction": "1",
    "num_components": "1",
    "centreline_mm": "mm",
    "contrast": "intensity of 0..255",
    "consistency": "1",
    "radius_mm": "mm",
    "component_voxels": "voxel",
}
RIM = 3  # width in voxels of the background that a vessel is compared with


@dataclass(frozen=True)
class LabelStatistics:
    """One patch. Undefined values (an empty or a full label) are None, or an empty array."""

    vessel_fraction: float
    num_components: int
    """26-connectivity."""
    centreline_mm: float
    """Length of the skeleton: see `skeleton_length_mm`."""
    contrast: float | None
    """Mean intensity of the labelled voxels minus that of unlabelled ones at most RIM voxels away."""
    consistency: float | None
    """See `consistency`."""
    radius_mm: np.ndarray
    """See `radii_mm`."""
    component_voxels: np.ndarray
    """The size of every component."""


def label_statistics(image_XYZ: np.ndarray, label_XYZ: np.ndarray, spacing_mm: Sequence[float]) -> LabelStatistics:
    """Statistics of one patch: image in [0, 255], label {0, 1}. Vessels end at the border of the patch.

    DataError for a label of other values, an image that is not finite, and edges of voxels that are not above 0.
    """
    vessel_XYZ = as_mask(label_XYZ, "label", ndim=3)
    as_spacing(spacing_mm, 3)
    components_XYZ, num_components = ndimage.label(vessel_XYZ, TOUCHING)
    skeleton_XYZ = centreline(vessel_XYZ)
    inside_V, rim_V = _inside_and_rim(image_XYZ, vessel_XYZ)
    return LabelStatistics(
        vessel_fraction=float(vessel_XYZ.mean()),
        num_components=int(num_components),
        centreline_mm=skeleton_length_mm(skeleton_XYZ, spacing_mm),
        contrast=float(inside_V.mean() - rim_V.mean()) if inside_V.size and rim_V.size else None,
        consistency=_brighter(inside_V, rim_V),
        radius_mm=radii_mm(vessel_XYZ, skeleton_XYZ, spacing_mm),
        component_voxels=np.bincount(components_XYZ.ravel())[1:],
    )


def radii_mm(vessel_XYZ: np.ndarray, skeleton_XYZ: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Of every skeleton voxel: distance to the nearest unlabelled voxel, centre to centre; empty without either."""
    if not vessel_XYZ.any() or vessel_XYZ.all():
        return np.zeros(0)
    return np.asarray(ndimage.distance_transform_edt(vessel_XYZ, sampling=spacing_mm)[skeleton_XYZ])


def consistency(image_XYZ: np.ndarray, label_XYZ: np.ndarray) -> float | None:
    """Chance that a labelled voxel is brighter than an unlabelled one at most RIM voxels away; ties count half.

    The area under the ROC curve near the label, invariant to brightness and contrast of the patch: 1 if the label is
    exactly the bright vessel, 0.5 if it is unrelated to the image. None for a label that is empty or has no rim.
    """
    return _brighter(*_inside_and_rim(image_XYZ, as_mask(label_XYZ, "label", ndim=3)))


def shift_label(label_XYZ: np.ndarray) -> np.ndarray:
    """The label shifted by two voxels along every axis, padded with zeros: the control of a misplaced label."""
    return np.pad(as_array(label_XYZ, "label", ndim=3), ((2, 0),) * 3)[:-2, :-2, :-2]


def skeleton_length_mm(skeleton_XYZ: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Length of the minimum spanning forest over touching voxels: 0 for a single voxel, a step less for a ring."""
    skeleton_XYZ, edges_mm = as_mask(skeleton_XYZ, "skeleton", ndim=3), as_spacing(spacing_mm, 3)
    index_XYZ = np.full(np.add(skeleton_XYZ.shape, 2), -1)
    inner = (slice(1, -1),) * 3
    voxels_V3 = np.argwhere(skeleton_XYZ)
    index_XYZ[inner][skeleton_XYZ] = np.arange(len(voxels_V3))
    if not len(voxels_V3):
        return 0.0
    rows, columns, lengths = [], [], []
    # Half of the 26 neighbours: each pair once.
    for step in [s for s in np.ndindex(3, 3, 3) if s > (1, 1, 1)]:
        neighbour_V = index_XYZ[tuple((voxels_V3 + step).T)]
        exists_V = neighbour_V >= 0
        rows.append(np.flatnonzero(exists_V))
        columns.append(neighbour_V[exists_V])
        length = float(np.linalg.norm((np.array(step) - 1) * edges_mm))
        lengths.append(np.full(int(exists_V.sum()), length))
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = sparse.coo_matrix((np.concatenate(lengths), edges), shape=(len(voxels_V3), len(voxels_V3)))
    return float(sparse.csgraph.minimum_spanning_tree(graph.tocsr()).sum())


def values_of(patches: Sequence[LabelStatistics], name: str) -> np.ndarray:
    """All defined values of one statistic over the patches, float64."""
    values = [getattr(patch, name) for patch in patches]
    defined = [np.atleast_1d(value) for value in values if value is not None]
    return np.concatenate(defined).astype(np.float64) if defined else np.zeros(0)


def distance(first: np.ndarray, second: np.ndarray) -> float | None:
    """Wasserstein-1 distance of two samples of one statistic, in its unit; None if either is empty."""
    first, second = as_finite(first, "first", ndim=1), as_finite(second, "second", ndim=1)
    return float(stats.wasserstein_distance(first, second)) if first.size and second.size else None


def _inside_and_rim(image_XYZ: np.ndarray, vessel_XYZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image_XYZ = as_finite(image_XYZ, "image", largest=LARGEST)
    if image_XYZ.shape != vessel_XYZ.shape:
        raise DataError(f"image of shape {image_XYZ.shape}, label of {vessel_XYZ.shape}: bring both onto one grid")
    rim_XYZ = ndimage.maximum_filter(vessel_XYZ, 2 * RIM + 1) & ~vessel_XYZ
    native = image_XYZ.dtype.newbyteorder("=")  # sums of swapped bytes round otherwise
    return image_XYZ[vessel_XYZ].astype(native), image_XYZ[rim_XYZ].astype(native)


def _brighter(inside_V: np.ndarray, rim_V: np.ndarray) -> float | None:
    """The Mann-Whitney U statistic divided by its maximum."""
    if not inside_V.size or not rim_V.size:
        return None
    ranks = stats.rankdata(np.concatenate([inside_V, rim_V]))[: inside_V.size]
    u = ranks.sum() - inside_V.size * (inside_V.size + 1) / 2
    return float(u / (inside_V.size * rim_V.size))
