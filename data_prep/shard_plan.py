"""Which patch of which subject goes into which shard: a function of cohort and settings, not of who builds it."""

# X Y Z voxels of the canonical grid

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep import patches
from data_prep.check import sha256_of_voxels
from vesselgan.config.schema import Prepare
from vesselgan.core.errors import DataError
from vesselgan.formats import volumes
from vesselgan.formats.cohort import Cohort, Subject
from vesselgan.formats.shards import Record

# What each purpose trains on: the GAN never sees another split than training.
SPLITS_OF = {"gan": ("train",), "unet": ("train", "validation")}


@dataclass(frozen=True)
class Part:
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
    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        return sum(part.stop - part.start for part in self.parts)

    @property
    def name(self) -> str:
        return f"{self.purpose}/{self.split}/{self.file}"

    @property
    def file(self) -> str:
        return f"shard-{self.number:05d}.h5"


def plan(cohort: Cohort, prepare: Prepare, purposes: list[str]) -> list[PlannedShard]:
    """Every shard of `purposes`, in order: subjects by id, their patches in order, pairs_per_shard to a shard."""
    shards = []
    for purpose in sorted(set(purposes)):
        for split in SPLITS_OF[purpose]:
            subjects = [name for name, subject in cohort.subjects.items() if subject.split == split]
            counts = [(name, num_patches(cohort.subjects[name].shape, prepare, purpose)) for name in sorted(subjects)]
            groups = _fill(counts, prepare.pairs_per_shard)
            shards += [PlannedShard(purpose, split, number, tuple(parts)) for number, parts in enumerate(groups)]
    return shards


def num_patches(shape: tuple[int, int, int], prepare: Prepare, purpose: str) -> int:
    """How many patches one subject gives: the grid where `purpose` has one, and the vessel-centred ones."""
    count = getattr(prepare, f"num_vessel_patches_{purpose}")
    if purpose in prepare.grid_patches:
        count += len(patches.grid_corners(patches.padded_shape(shape, prepare.patch_shape), prepare.patch_shape))
    return count


def _fill(counts: list[tuple[str, int]], size: int) -> list[list[Part]]:
    groups: list[list[Part]] = []
    room = 0
    for subject, count in counts:
        start = 0
        while start < count:
            if room == 0:
                groups.append([])
                room = size
            stop = min(count, start + room)
            groups[-1].append(Part(subject, start, stop))
            room -= stop - start
            start = stop
    return groups


class Source:
    """Makes the records of planned shards; holds the voxels of one subject at a time."""

    def __init__(self, cohort: Cohort, prepare: Prepare) -> None:
        self.cohort, self.prepare = cohort, prepare
        self.held: Prepared | None = None

    def records(self, shard: PlannedShard) -> Iterator[Record]:
        """The shard's patches in order. DataError when a file is no longer what was checked."""
        for part in shard.parts:
            subject = self.cohort.subjects[part.subject]
            if self.held is None or self.held.name != part.subject:
                self.held = None  # the voxels before are given back before the next are read
                self.held = Prepared(part.subject, subject, self.prepare)
            for corner, kind in self.held.positions(shard.purpose)[part.start : part.stop]:
                yield Record(
                    image_XYZ=patches.cut(self.held.image_XYZ, corner, self.prepare.patch_shape),
                    label_XYZ=patches.cut(self.held.label_XYZ, corner, self.prepare.patch_shape),
                    subject=part.subject,
                    corner=corner,
                    kind=kind,
                    limits=subject.limits,
                    num_clipped=subject.num_clipped,
                )


class Prepared:
    """One subject's voxels, scaled to 0..255 and padded, and where its patches lie."""

    def __init__(self, name: str, subject: Subject, prepare: Prepare) -> None:
        self.name, self.prepare = name, prepare
        image = volumes.read_image(subject.image, nan_value=prepare.nan_value)
        image_name, label_name = ("image", "label") if prepare.pseudonymise else (subject.image, subject.label)
        _require_unchanged(name, image_name, image.data_XYZ, subject.image_sha256)
        label = volumes.read_label(
            subject.label, label_values=prepare.label_values, label_binarize_threshold=prepare.label_binarize_threshold
        )
        _require_unchanged(name, label_name, label.data_XYZ, subject.label_sha256)
        scaled_XYZ = volumes.scale_to_255(image.data_XYZ, subject.limits)
        self.image_XYZ = patches.reflect_pad(scaled_XYZ, prepare.patch_shape)
        self.label_XYZ = patches.reflect_pad(label.data_XYZ, prepare.patch_shape)
        self._positions: dict[str, list[tuple[tuple[int, int, int], str]]] = {}

    def positions(self, purpose: str) -> list[tuple[tuple[int, int, int], str]]:
        """(corner, kind) of every patch, in order."""
        if purpose not in self._positions:
            grid = []
            if purpose in self.prepare.grid_patches:
                corners_N3 = patches.grid_corners(self.image_XYZ.shape, self.prepare.patch_shape)
                grid = [(tuple(corner), "grid") for corner in corners_N3.tolist()]
            self._positions[purpose] = grid + self._vessel_positions(purpose)
        return self._positions[purpose]

    def _vessel_positions(self, purpose: str) -> list[tuple[tuple[int, int, int], str]]:
        count = getattr(self.prepare, f"num_vessel_patches_{purpose}")
        corners_N3, _ = patches.vessel_corners(
            self.label_XYZ,
            self.prepare.patch_shape,
            count,
            seed=self.prepare.seed,
            subject=self.name,
            purpose=purpose,
        )
        return [(tuple(corner), "vessel") for corner in corners_N3.tolist()]


def _require_unchanged(name: str, path: Path | str, volume_XYZ: np.ndarray, sha256: str | None) -> None:
    if sha256_of_voxels(volume_XYZ) != sha256:
        raise DataError(f"{path} (subject {name}): its voxels changed since they were checked; start the build again")
