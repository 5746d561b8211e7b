"""The report's pictures of patches: which are shown, and how a patch becomes an image in the page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from vesselgan.formats.shards import ShardSet
from vesselgan.viz import pictures, rendering

SEED = 20220  # decides which patches are shown; chosen before any patch was looked at
SIDE = 256  # pixels of a slice's longer side
SIDE_3D = 360
GAMMA = 0.8
LEAST_VESSEL_SHARE = 0.005  # of the patches that are shown: most patches hold no vessel, and would be black
MOST_TRIED = 400
CHOICE = (
    f"Which patches are shown was fixed before any was looked at: in an order by seed {SEED}, the first whose label "
    f"fills at least {LEAST_VESSEL_SHARE:.1%} of the patch."
)


@dataclass(frozen=True)
class Sample:
    """A patch that is shown."""

    index: int
    subject: str
    kind: str
    image_XYZ: np.ndarray
    label_XYZ: np.ndarray

    @property
    def name(self) -> str:
        return (
            f"sample {self.index}" if self.kind == "synthetic" else f"{self.subject}, patch {self.index} ({self.kind})"
        )

    @property
    def vessels(self) -> str:
        parts = rendering.count_components(self.label_XYZ)
        share = 100.0 * float(np.mean(self.label_XYZ > 0))
        return f"{share:.1f} % vessel in {parts} part{'' if parts == 1 else 's'}"


def choose(total: int, count: int, *, stream: int) -> list[int]:
    """`count` numbers below `total` (all if there are fewer), a function of SEED and `stream` alone."""
    drawn = np.random.default_rng([SEED, stream]).permutation(total)[:count]
    return [int(i) for i in drawn]


def choose_with_vessels(shards: ShardSet, count: int, *, stream: int, label_threshold: float) -> list[int]:
    """The first `count` patches, in the order of `choose`, that LEAST_VESSEL_SHARE of the voxels are vessel in.

    Where too few of MOST_TRIED are, the first others follow.
    """
    order = choose(len(shards), MOST_TRIED, stream=stream)
    found: list[int] = []
    for i in order:
        if len(found) == count:
            break
        if float(np.mean(shards.label(i, label_threshold))) >= LEAST_VESSEL_SHARE:
            found.append(i)
    return [*found, *(i for i in order if i not in found)][:count]


def read_samples(shards: ShardSet, indices: Sequence[int], label_threshold: float) -> list[Sample]:
    """The patches of these numbers; a synthetic label is cut at `label_threshold`."""
    samples = []
    for i in indices:
        record = shards.record(i)
        image, label = shards.read_pair(i, scaling="volume", label_threshold=label_threshold)
        samples.append(Sample(i, record.subject, record.kind, image, label))
    return samples


def window(samples: Sequence[Sample]) -> float:
    """The intensity shown as white, one for all pictures: the 90th percentile of these patches' labelled voxels.

    Where nothing is labelled, the 99.9th percentile of all voxels.
    """
    vessels = [sample.image_XYZ[sample.label_XYZ > 0] for sample in samples]
    if any(len(values) for values in vessels):
        return max(float(np.percentile(np.concatenate(vessels), 90)), 1.0)
    return max([float(np.percentile(sample.image_XYZ, 99.9)) for sample in samples], default=255.0) or 1.0


def _size(shape_HW: tuple[int, ...], spacing_mm: Sequence[float]) -> tuple[int, int]:
    """Rows and columns of an axial picture: true to scale, the longer side SIDE pixels."""
    height_mm, width_mm = shape_HW[0] * spacing_mm[1], shape_HW[1] * spacing_mm[0]
    scale = SIDE / max(height_mm, width_mm)
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def axial(sample: Sample, spacing_mm: Sequence[float], white: float) -> np.ndarray:
    """The mid-axial slice."""
    picture = pictures.grey(pictures.mid_slice(sample.image_XYZ), 0.0, white, gamma=GAMMA)
    return pictures.enlarge(picture, *_size(picture.shape, spacing_mm))


def axial_label(sample: Sample, spacing_mm: Sequence[float], white: float) -> np.ndarray:
    """The mid-axial slice, darkened, with its label painted over it."""
    picture = axial(sample, spacing_mm, white) // 2
    mask = pictures.enlarge_mask(pictures.mid_slice(sample.label_XYZ), *picture.shape[:2])
    return pictures.overlay(picture, mask, opacity=0.9)


def projection(sample: Sample, spacing_mm: Sequence[float], white: float) -> np.ndarray:
    """The axial maximum intensity projection."""
    picture = pictures.grey(pictures.mip(sample.image_XYZ), 0.0, white, gamma=GAMMA)
    return pictures.enlarge(picture, *_size(picture.shape, spacing_mm))


def vessels(sample: Sample, spacing_mm: Sequence[float]) -> np.ndarray:
    """The label's surface in 3D."""
    return rendering.render_vessels(sample.label_XYZ, tuple(spacing_mm), size=SIDE_3D)


def inline(picture: np.ndarray, alt: str) -> str:
    """An <img> that carries its PNG."""
    data = base64.b64encode(pictures.encode_png(picture)).decode("ascii")
    height, width = picture.shape[:2]
    return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">'
