"""The report's pictures of patches: the choice of patches, and their rendering."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vesselgan.core.console import counted
from vesselgan.formats.shards import ShardSet
from vesselgan.metrics.centreline import count_components
from vesselgan.viz import pictures, rendering

SEED = 20220  # of the choice of patches; fixed before any patch was looked at
SIDE = 256  # pixels of a slice's longer side
SIDE_3D = 360
GAMMA = 0.8
MIN_VESSEL_FRACTION = 0.005  # of the shown patches: most patches hold no vessel and would be black
MAX_TRIED = 400
CHOICE = (
    f"The patches were not selected by eye: in an order drawn with seed {SEED}, they are the first whose label fills "
    f"at least {MIN_VESSEL_FRACTION:.1%} of the patch."
)


@dataclass(frozen=True)
class Sample:
    """A patch that the report shows."""

    index: int
    subject: str
    kind: str
    image_XYZ: np.ndarray
    label_XYZ: np.ndarray

    @property
    def name(self) -> str:
        is_synthetic = self.kind == "synthetic"
        return f"sample {self.index}" if is_synthetic else f"{self.subject}, patch {self.index} ({self.kind})"

    @property
    def z(self) -> int:
        """The axial slice with most vessel; the middle one of a patch without."""
        area_Z = (self.label_XYZ > 0).sum(axis=(0, 1))
        return int(area_Z.argmax()) if area_Z.any() else len(area_Z) // 2

    @property
    def vessel_fraction(self) -> float:
        return float(np.mean(self.label_XYZ > 0))

    @property
    def vessels(self) -> str:
        components = counted(count_components(self.label_XYZ > 0), "component")
        return f"{100.0 * self.vessel_fraction:.1f} % vessel in {components}"


def choose(total: int, count: int, *, stream: int) -> list[int]:
    """Returns `count` indices below `total` (all if there are fewer), a function of SEED and `stream` alone."""
    return np.random.default_rng([SEED, stream]).permutation(total)[:count].tolist()


def choose_with_vessels(shards: ShardSet, count: int, *, stream: int, label_threshold: float | None) -> list[int]:
    """Returns the first `count` patches, in the order of `choose`, with at least MIN_VESSEL_FRACTION vessel.

    If fewer of MAX_TRIED patches have it, the first others follow.
    """
    order = choose(len(shards), MAX_TRIED, stream=stream)
    chosen: list[int] = []
    for i in order:
        if len(chosen) == count:
            break
        if float(np.mean(shards.label(i, label_threshold))) >= MIN_VESSEL_FRACTION:
            chosen.append(i)
    return [*chosen, *(i for i in order if i not in chosen)][:count]


def read_samples(shards: ShardSet, indices: Sequence[int], label_threshold: float | None) -> list[Sample]:
    """Reads these patches; `label_threshold` binarizes synthetic labels."""
    return [Sample(i, shards.subject(i), shards.kind(i), *shards.pair(i, label_threshold)) for i in indices]


def window(samples: Sequence[Sample]) -> float:
    """The intensity shown as white in all pictures: the 90th percentile of the labelled voxels.

    Without labels, the 99.9th percentile of all voxels.
    """
    vessels = [sample.image_XYZ[sample.label_XYZ > 0] for sample in samples]
    if any(len(values) for values in vessels):
        return max(float(np.percentile(np.concatenate(vessels), 90)), 1.0)
    return max([float(np.percentile(sample.image_XYZ, 99.9)) for sample in samples], default=255.0) or 1.0


def axial(sample: Sample, spacing_mm: Sequence[float], white: float) -> np.ndarray:
    """The axial slice `sample.z`."""
    picture = pictures.grey(pictures.axial_slice(sample.image_XYZ, sample.z), 0.0, white, gamma=GAMMA)
    return pictures.enlarge(picture, *pictures.size_to_scale(picture, spacing_mm, SIDE))


def axial_label(sample: Sample, spacing_mm: Sequence[float], white: float) -> np.ndarray:
    """The axial slice `sample.z`, darkened, with its label over it."""
    picture = axial(sample, spacing_mm, white) // 2
    mask = pictures.enlarge_mask(pictures.axial_slice(sample.label_XYZ, sample.z), *picture.shape[:2])
    return pictures.overlay(picture, mask, opacity=0.9)


def projection(sample: Sample, spacing_mm: Sequence[float], white: float) -> np.ndarray:
    """The axial maximum intensity projection."""
    picture = pictures.grey(pictures.mip(sample.image_XYZ), 0.0, white, gamma=GAMMA)
    return pictures.enlarge(picture, *pictures.size_to_scale(picture, spacing_mm, SIDE))


def vessels(sample: Sample, spacing_mm: Sequence[float]) -> np.ndarray:
    """The label's surface in 3D."""
    x_mm, y_mm, z_mm = spacing_mm
    return rendering.render_vessels(sample.label_XYZ, (x_mm, y_mm, z_mm), size=SIDE_3D)
