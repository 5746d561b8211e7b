"""Which patch of which subject goes into which shard: a function of cohort and settings, not of who builds it."""

# X Y Z voxels of the canonical grid, N patches

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep import patches
from vesselgan.anatomy.tissue import tissue_map
from vesselgan.config.schema import Prepare
from vesselgan.formats.cohort import Cohort, Subject
from vesselgan.formats.intensities import scale_to_255
from vesselgan.formats.shards import Record

# What each purpose trains on: the GAN never sees another split than training.
SPLITS_OF = {"gan": ("train",), "unet": ("train", "validation")}

Position = tuple[tuple[int, int, int], str]
"""First voxel of a patch, and its kind: `grid` or `vessel`."""


@dataclass(frozen=True)
class PatchRange:
    """Patches `start` to `stop` (exclusive) of one subject's list."""

    subject: str
    start: int
    stop: int


@dataclass(frozen=True)
class PlannedShard:
    """One shard before it is built."""

    purpose: str
    split: str
    number: int
    ranges: tuple[PatchRange, ...]

    @property
    def count(self) -> int:
        return sum(patch_range.stop - patch_range.start for patch_range in self.ranges)

    @property
    def name(self) -> str:
        return f"{self.purpose}/{self.split}/shard-{self.number:05d}.h5"


def plan_shards(cohort: Cohort, prepare: Prepare, purposes: list[str]) -> list[PlannedShard]:
    """Every shard of `purposes`, in order: subjects by id, their patches in order, pairs_per_shard to a shard."""
    shards = []
    for purpose in sorted(set(purposes)):
        for split in SPLITS_OF[purpose]:
            subjects = sorted(name for name, subject in cohort.subjects.items() if subject.split == split)
            counts = [(name, num_patches(cohort.subjects[name].shape, prepare, purpose)) for name in subjects]
            for number, ranges in enumerate(_fill_shards(counts, prepare.pairs_per_shard)):
                shards.append(PlannedShard(purpose, split, number, tuple(ranges)))
    return shards


def num_patches(shape: tuple[int, int, int], prepare: Prepare, purpose: str) -> int:
    """How many patches one subject gives: the grid where `purpose` has one, and the vessel-centred ones."""
    count = getattr(prepare, f"num_vessel_patches_{purpose}")
    if purpose in prepare.grid_patches:
        count += len(patches.grid_corners(patches.padded_shape(shape, prepare.patch_shape), prepare.patch_shape))
    return count


def _fill_shards(counts: list[tuple[str, int]], size: int) -> list[list[PatchRange]]:
    shards: list[list[PatchRange]] = []
    room = 0
    for subject, count in counts:
        start = 0
        while start < count:
            if room == 0:
                shards.append([])
                room = size
            stop = min(count, start + room)
            shards[-1].append(PatchRange(subject, start, stop))
            room -= stop - start
            start = stop
    return shards


class PatchExtractor:
    """Makes the records of planned shards; keeps the voxels of one subject at a time.

    is_synthetic: of heads that `vesselgan generate` wrote; their label is also the score, which such records hold.
    """

    def __init__(self, cohort: Cohort, prepare: Prepare, *, is_synthetic: bool = False) -> None:
        self.cohort, self.prepare, self.is_synthetic = cohort, prepare, is_synthetic
        has_masks = all(subject.mask is not None for subject in cohort.subjects.values())
        self.has_tissue = has_masks and not is_synthetic
        self.loaded: LoadedSubject | None = None

    def records(self, shard: PlannedShard) -> Iterator[Record]:
        """The shard's patches in order. DataError when a file changed since it was checked."""
        for patch_range in shard.ranges:
            name = patch_range.subject
            subject = self.cohort.subjects[name]
            if self.loaded is None or self.loaded.name != name:
                self.loaded = None  # frees its voxels before the next are read
                self.loaded = LoadedSubject(name, subject, self.prepare, has_tissue=self.has_tissue)
            for corner, kind in self.loaded.positions(shard.purpose)[patch_range.start : patch_range.stop]:
                label_XYZ = patches.cut(self.loaded.label_XYZ, corner, self.prepare.patch_shape)
                yield Record(
                    image_XYZ=patches.cut(self.loaded.image_XYZ, corner, self.prepare.patch_shape),
                    label_XYZ=label_XYZ,
                    score_XYZ=label_XYZ.astype(np.float16) if self.is_synthetic else None,
                    tissue_XYZ=self._tissue(corner),
                    subject=name,
                    corner=corner,
                    kind="synthetic" if self.is_synthetic else kind,
                    limits=subject.limits,
                    num_clipped=subject.num_clipped,
                )

    def _tissue(self, corner: tuple[int, int, int]) -> np.ndarray | None:
        assert self.loaded is not None
        tissue_XYZ = self.loaded.tissue_XYZ
        return None if tissue_XYZ is None else patches.cut(tissue_XYZ, corner, self.prepare.patch_shape)


class LoadedSubject:
    """One subject's voxels, scaled to 0..255 and padded, and the positions of its patches."""

    def __init__(self, name: str, subject: Subject, prepare: Prepare, *, has_tissue: bool) -> None:
        self.name, self.prepare = name, prepare
        assert subject.label is not None, name  # build_shards refuses a cohort without labels
        image, label = subject.read_image(), subject.read_label()
        scaled_XYZ = scale_to_255(image.data_XYZ, subject.limits)
        self.image_XYZ = patches.reflect_pad(scaled_XYZ, prepare.patch_shape)
        self.label_XYZ = patches.reflect_pad(label.data_XYZ, prepare.patch_shape)
        self.tissue_XYZ: np.ndarray | None = None
        if has_tissue:
            tissue_XYZ = tissue_map(scaled_XYZ, subject.read_mask().data_XYZ, image.spacing_mm)
            self.tissue_XYZ = patches.reflect_pad(tissue_XYZ, prepare.patch_shape)
        self._positions: dict[str, list[Position]] = {}

    def positions(self, purpose: str) -> list[Position]:
        """Of every patch, in order."""
        if purpose not in self._positions:
            positions = []
            if purpose in self.prepare.grid_patches:
                corners_N3 = patches.grid_corners(self.image_XYZ.shape, self.prepare.patch_shape)
                positions = [(tuple(corner), "grid") for corner in corners_N3.tolist()]
            corners_N3 = patches.vessel_corners(
                self.label_XYZ,
                self.prepare.patch_shape,
                getattr(self.prepare, f"num_vessel_patches_{purpose}"),
                seed=self.prepare.seed,
                subject=self.name,
                purpose=purpose,
            )
            positions += [(tuple(corner), "vessel") for corner in corners_N3.tolist()]
            self._positions[purpose] = positions
        return self._positions[purpose]
