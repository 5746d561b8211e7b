"""The contract between stages: HDF5 shards of paired image and vessel label. This docstring is the format's document.

A set of shards is one folder: `manifest.json` and the HDF5 files that it lists. Real and synthetic patches obey the
same contract. Needs numpy and h5py alone.

A RECORD is one patch, read and written whole so that image and label cannot come apart: image float32 in [0, 255],
vessel label uint8 {0, 1}, subject, corner (first voxel in the canonical RAS volume), kind, the intensity limits that
became 0 and 255, and how many voxels of the whole volume those limits clipped. A synthetic record keeps the
generator's score too, so that the label's threshold can be chosen when reading.

A SHARD is HDF5 in the 1.10 file format (HDF5 checksums its own structures). Every data set has fletcher32 and no other
filter; those of voxels hold one patch per chunk, uncompressed. N records, S subjects, patch X x Y x Z:

    attributes    format = "vesselgan-shard", format_version = 1, made_by, origin = "real" | "synthetic",
                  count = N and, written last, complete = 1; texts UTF-8 of fixed width
    image         uint16  [N, X, Y, Z]  attribute scale = 255/65535: intensity = stored * scale
    label         uint8   [N, X, Y, Z]  0 or 1; in a synthetic shard at its maker's threshold
    score         float16 [N, X, Y, Z]  in [0, 1], vessel where score >= threshold; synthetic shards alone
    tissue        uint8   [N, X, Y, Z]  outside 0, head 1, brain 2; real shards of a cohort with brain masks alone
    subject_id    bytes   [S]           UTF-8, fixed width, zero padded; in order of first use
    subject       int32   [N]           row of subject_id
    corner        int32   [N, 3]        voxels
    kind          uint8   [N]           enum: grid 0, vessel 1, synthetic 2
    limits        float64 [N, 2]        intensities that became 0 and 255
    num_clipped   int64   [N]           non-zero voxels of the volume outside the limits

Quantisation: an intensity q * 255/65535, q = 0..65535, comes back bit for bit; any other within half a step, 0.00195.
All else comes back bit for bit. Links, external storage and virtual data sets are refused.

THE MANIFEST, JSON: format = "vesselgan-shards", format_version, made_by, origin, patch_shape, spacing_mm,
percentiles, count, subjects {id: {spacing_mm, affine, shape, patient, image_sha256}}, shards [{file, count,
bytes, sha256}], extra (free). `shape` is that of the volume that its patches were cut from, at least the patch's;
`patient` says whose visit a subject is, null if unknown; image_sha256 is of its volume's voxels; generated
patches lack these three.
A record's number is its place in the order of that list. Files that it does not list do not exist for readers.

A killed job leaves nothing that looks complete: the shard as NAME.partial, `complete` last, fsync,
rename, fsync of the folder; the manifest after all its shards. A shard's bytes are a function of its records and the
program's version: no time stamps, no names of machines or files. A newer format_version is refused by name.
"""

import operator
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex, overload

import numpy as np

from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import DataError, UsageError, VesselganError, check_readable
from vesselgan.formats.intensities import from_stored
from vesselgan.formats.manifest import (
    MANIFEST,
    Manifest,
    content_hash,
    read_manifest,
    training_hashes,
    write_manifest,
)
from vesselgan.formats.shard_file import FORMAT_VERSION, KINDS, Record, ShardFile, ShardInfo, remedy, write_shard

__all__ = ["FORMAT_VERSION", "KINDS", "MANIFEST", "Manifest", "Record", "ShardInfo", "ShardSet", "content_hash"]
__all__ += ["read_manifest", "training_hashes", "verify", "write_manifest", "write_shard"]

_KIND_NAMES = list(KINDS)
PROCEDURAL_TREES = "procedural_trees"
"""In a synthetic manifest's `extra`: true where the labels are a procedure's, learned from nobody."""
_MAX_OPEN = 128  # shards open at once in one process: well under the usual limit of 1024 files


class ShardSet:
    """The records of one folder, numbered 0 .. len - 1 in the manifest's order; negative numbers count from the end.

    `shards[i]` is record i as written, `shards[a:b]` a list of records; iteration reads them one by one. The methods
    read no more than they return. Opening reads the manifest and checks that every shard exists with its size; a shard
    is opened and checked on first read. Handles belong to one process: a forked or spawned one opens its own.
    Raises DataError, naming the shard and the remedy, for anything damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        self.patch_shape, self.spacing_mm = self.manifest.patch_shape, self.manifest.spacing_mm
        self.origin, self.subjects = self.manifest.origin, self.manifest.subjects
        self._ends = np.cumsum([shard.count for shard in self.manifest.shards])
        self._open: dict[int, ShardFile] = {}
        self._process = os.getpid()
        for shard in self.manifest.shards:
            if problem := _size_problem(self.folder, shard):
                raise DataError(f"{problem}; {remedy(self.origin)}")

    def __len__(self) -> int:
        return self.manifest.count

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.patch_shape))
        return f"ShardSet({str(self.folder)!r}: {len(self)} {self.origin} patches of {shape} voxels)"

    def __enter__(self) -> "ShardSet":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, i: SupportsIndex) -> Record: ...

    @overload
    def __getitem__(self, i: slice) -> list[Record]: ...

    def __getitem__(self, i: SupportsIndex | slice) -> Record | list[Record]:
        if isinstance(i, slice):
            return [self[number] for number in range(*i.indices(len(self)))]
        shard, row = self._shard(i)
        tables = shard.tables
        return Record(
            image_XYZ=from_stored(shard.read("image", row)),
            label_XYZ=shard.read("label", row),
            subject=shard.subject(row),
            corner=tuple(tables["corner"][row].tolist()),
            kind=_KIND_NAMES[tables["kind"][row]],
            limits=tuple(tables["limits"][row].tolist()),
            num_clipped=int(tables["num_clipped"][row]),
            score_XYZ=shard.read("score", row) if self.origin == "synthetic" else None,
            tissue_XYZ=shard.read("tissue", row) if "tissue" in shard.voxels else None,
        )

    @property
    def label_threshold(self) -> float | None:
        """The threshold of the stored labels, which the manifest recommends; None for real patches."""
        return self.manifest.extra.get("threshold") if self.origin == "synthetic" else None

    def shard_of(self, i: int) -> str:
        """File name of the shard that holds record i."""
        return self.manifest.shards[self._locate(i)[0]].file

    def subject(self, i: int) -> str:
        """The subject of record i."""
        shard, row = self._shard(i)
        return shard.subject(row)

    def patient(self, i: int) -> str:
        """The patient of record i."""
        return self.patient_of(self.subject(i))

    def patient_of(self, subject: str) -> str:
        """The patient of a subject's visit where it is known, else the subject."""
        return str(self.subjects[subject].get("patient") or subject)

    def patients(self) -> set[str]:
        """Of all subjects."""
        return {self.patient_of(subject) for subject in self.subjects}

    def corner(self, i: int) -> tuple[int, int, int]:
        """The first voxel of record i in its subject's canonical volume."""
        shard, row = self._shard(i)
        x, y, z = shard.tables["corner"][row].tolist()
        return x, y, z

    def volume_shape(self, i: int) -> tuple[int, int, int]:
        """Of the volume that record i was cut from, at least the patch's. Raises DataError if the manifest has none."""
        subject = self.subject(i)
        if "shape" not in self.subjects.get(subject, {}):
            raise DataError(
                f"{self.folder / MANIFEST}: has no shape of the volume of {subject}, which a network that knows a "
                "patch's place needs; start `vesselgan build-shards` again: it writes the manifest alone anew"
            )
        x, y, z = self.subjects[subject]["shape"]
        return x, y, z

    def kind(self, i: int) -> str:
        """`grid`, `vessel` or `synthetic`."""
        shard, row = self._shard(i)
        return _KIND_NAMES[shard.tables["kind"][row]]

    def image(self, i: int, scaling: str = "volume") -> np.ndarray:
        """float32 in [0, 255]; scaling: see formats.intensities."""
        return from_stored(self.stored_image(i), scaling)

    def stored_image(self, i: int) -> np.ndarray:
        """uint16 as stored, the smallest form of an image; see formats.intensities."""
        shard, row = self._shard(i)
        return shard.read("image", row)

    def label(self, i: int, threshold: float | None = None) -> np.ndarray:
        """uint8 {0, 1}: score >= threshold of a synthetic patch; the stored label of a real one, or of no threshold.

        The stored label of a synthetic patch is that of the threshold that its manifest recommends.
        """
        if threshold is not None and self.origin == "synthetic":
            return (self.score(i) >= threshold).astype(np.uint8)
        shard, row = self._shard(i)
        return shard.read("label", row)

    def score(self, i: int) -> np.ndarray:
        """float32 in [0, 1]: the generator's label channel. Raises UsageError for real patches, which have none."""
        if self.origin != "synthetic":
            raise UsageError(f"{self.folder}: real patches have labels and no scores; read label(i)")
        shard, row = self._shard(i)
        return shard.read("score", row).astype(np.float32)

    def tissue(self, i: int) -> np.ndarray:
        """uint8: outside 0, head 1, brain 2 (`anatomy.tissue`). Raises DataError where there is none."""
        shard, row = self._shard(i)
        if "tissue" not in shard.voxels:
            raise DataError(
                f"{self.folder}: has no tissue maps, as its cohort has no brain mask for every subject; make masks "
                "(`vesselgan preprocess`) and the shards again, or train with variant.condition=label"
            )
        return shard.read("tissue", row)

    def pair(self, i: int, threshold: float | None = None, *, scaling: str = "volume") -> tuple[np.ndarray, np.ndarray]:
        """(image, label) of record i, as `image` and `label` give them."""
        return self.image(i, scaling), self.label(i, threshold)

    def check_bytes(self) -> None:
        """Raises DataError unless the bytes of every shard are those of the manifest, which identify the patches."""
        for shard in self.manifest.shards:
            if problem := _content_problem(self.folder, shard):
                raise DataError(f"{problem}; {remedy(self.origin)}")

    def close(self) -> None:
        """Closes the open shards; the next read opens its own again."""
        for shard in self._open.values():
            shard.close()
        self._open = {}

    def _locate(self, i: SupportsIndex) -> tuple[int, int]:
        index = operator.index(i)
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.folder}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, int(index - self._ends[number] + self.manifest.shards[number].count)

    def _shard(self, i: SupportsIndex) -> tuple[ShardFile, int]:
        """The open shard of record i and the row in it."""
        if self._process != os.getpid():  # a handle that came through fork belongs to the parent
            self._open, self._process = {}, os.getpid()
        number, row = self._locate(i)
        if number not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self._open.pop(next(iter(self._open))).close()
            info = self.manifest.shards[number]
            shard = ShardFile(
                self.folder / info.file, count=info.count, patch_shape=self.patch_shape, origin=self.origin
            )
            if strangers := _strangers(shard, self.manifest):
                shard.close()
                raise DataError(
                    f"{shard.path}: holds subjects that the manifest does not name ({', '.join(strangers[:3])}): of "
                    f"another set; {remedy(self.origin)}"
                )
            self._open[number] = shard
        return self._open[number], row


def verify(folder: str | Path, *, deep: bool = True) -> list[str]:
    """The problems of a set of shards, one message each, naming the file; empty if it is valid.

    Checks the manifest, sizes and every shard's structure; `deep` also every byte (sha256) and value.
    """
    try:
        manifest = read_manifest(folder)
    except VesselganError as error:
        return [str(error)]
    return [problem for info in manifest.shards for problem in _shard_problems(Path(folder), manifest, info, deep)]


def _shard_problems(folder: Path, manifest: Manifest, info: ShardInfo, deep: bool) -> list[str]:
    path, after = folder / info.file, f"; {remedy(manifest.origin)}"
    if problem := _size_problem(folder, info):
        return [problem + after]
    try:
        if deep and (problem := _content_problem(folder, info)):
            return [problem + after]
        shard = ShardFile(path, count=info.count, patch_shape=manifest.patch_shape, origin=manifest.origin)
    except DataError as error:
        return [str(error)]
    except OSError as error:
        check_readable(path, error)
        return [f"{path}: cannot be read ({error.strerror}){after}"]
    problems = [f"{path}: subject {name} is not in the manifest{after}" for name in _strangers(shard, manifest)]
    try:
        problems += [f"{path}: {problem}{after}" for problem in (shard.value_problems() if deep else [])]
    except DataError as error:
        problems.append(str(error))
    finally:
        shard.close()
    return problems


def _content_problem(folder: Path, info: ShardInfo) -> str | None:
    is_same = sha256_of(folder / info.file) == info.sha256
    return None if is_same else f"{folder / info.file}: its bytes changed (sha256 differs from the manifest's)"


def _strangers(shard: ShardFile, manifest: Manifest) -> list[str]:
    return [name for name in shard.subject_ids if name not in manifest.subjects]


def _size_problem(folder: Path, info: ShardInfo) -> str | None:
    path = folder / info.file
    try:
        size = path.stat().st_size
    except OSError as error:
        check_readable(path, error)
        return f"{path}: shard is missing or not readable ({error.strerror})"
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        return f"{path}: a link that leads out of its folder; copy the shard, or link the whole folder"
    return None if size == info.bytes else f"{path}: shard has {size} bytes, the manifest says {info.bytes}"
