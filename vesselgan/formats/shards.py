"""The contract between stages: HDF5 shards of paired image and vessel label. This docstring is the format's document.

A set of shards is one folder: `manifest.json` and the HDF5 files that it lists. Real and synthetic patches obey the
same contract. Needs numpy and h5py alone.

A RECORD is one patch, read and written whole so that image and label cannot come apart: image float32 in [0, 255],
vessel label uint8 {0, 1}, subject, corner (first voxel in the canonical RAS volume), kind, the intensity limits that
became 0 and 255, and how many voxels of the whole volume those limits clipped. A synthetic record keeps the
generator's score too, so that the label's threshold can be chosen when reading.

A SHARD is HDF5 in the 1.10 file format (HDF5 checksums its own structures). Every data set has fletcher32 and no other
filter; image, label and score hold one patch per chunk, uncompressed. N records, S subjects, patch X x Y x Z:

    attributes    format = "vesselgan-shard", format_version = 1, made_by, origin = "real" | "synthetic",
                  count = N and, written last, complete = 1; texts UTF-8 of fixed width
    image         uint16  [N, X, Y, Z]  attribute scale = 255/65535: intensity = stored * scale
    label         uint8   [N, X, Y, Z]  0 or 1; in a synthetic shard at its maker's threshold
    score         float16 [N, X, Y, Z]  in [0, 1], vessel where score >= threshold; synthetic shards alone
    subject_id    bytes   [S]           UTF-8, fixed width, zero padded; in order of first use
    subject       int32   [N]           row of subject_id
    corner        int32   [N, 3]        voxels
    kind          uint8   [N]           enum: grid 0, vessel 1, synthetic 2
    limits        float64 [N, 2]        intensities that became 0 and 255
    num_clipped   int64   [N]           voxels of the volume above the upper limit

Quantisation: an intensity q * 255/65535, q = 0..65535, comes back bit for bit; any other within half a step, 0.00195.
Labels, scores and tables come back bit for bit. Links, external storage and virtual data sets are refused.

THE MANIFEST, JSON: format = "vesselgan-shards", format_version, made_by, origin, patch_shape, spacing_mm,
upper_percentile, count, subjects {id: {spacing_mm, affine, patient, image_sha256}}, shards [{file, count, bytes,
sha256}], extra (free). `patient` says whose visit a subject is, null if unknown; image_sha256 is of its
volume's voxels; real sets alone have both.
A record's number is its place in the order of that list. Files that it does not list do not exist for readers.

A killed job leaves nothing that looks complete: the shard as NAME.partial, `complete` last, fsync,
rename, fsync of the folder; the manifest after all its shards. A shard's bytes are a function of its records and the
program's version: no time stamps, no names of machines or files. A newer format_version is refused by name.
"""

import hashlib
import json
import operator
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.core.atomic_io import sha256_of, write_text
from vesselgan.core.errors import DataError, ResourceError, UsageError, VesselganError
from vesselgan.core.version import __version__
from vesselgan.formats.shard_file import (
    FORMAT_VERSION,
    KINDS,
    ORIGINS,
    STEPS_PER_UNIT,
    Record,
    ShardFile,
    ShardInfo,
    check_version,
    remedy,
    write_shard,
)

__all__ = ["FORMAT_VERSION", "KINDS", "MANIFEST", "Manifest", "Record", "ShardInfo", "ShardSet", "content_hash"]
__all__ += ["intensities", "read_manifest", "verify", "write_manifest", "write_shard"]

MANIFEST = "manifest.json"
SCALINGS = ("volume", "patch")
_KIND_NAMES = list(KINDS)
_MAX_OPEN = 128  # shards open at once in one process: well under the usual limit of 1024 files


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; the fields are its keys."""

    origin: str
    patch_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    upper_percentile: float | None
    count: int
    subjects: dict[str, dict[str, Any]]
    shards: tuple[ShardInfo, ...]
    extra: dict[str, Any]
    made_by: str = field(default=f"vesselgan {__version__}")


def write_manifest(
    folder: str | Path,
    *,
    shards: Sequence[ShardInfo],
    patch_shape: tuple[int, int, int],
    origin: str,
    subjects: dict[str, dict[str, Any]],
    spacing_mm: tuple[float, float, float],
    upper_percentile: float | None,
    extra: dict[str, Any],
) -> Path:
    """Makes the finished shards in `folder` a set; written last.

    subjects: {id: {spacing_mm, affine, ...}}; spacing_mm is the set's own, which generated patches inherit.
    Raises ResourceError if it cannot be written.
    """
    assert origin in ORIGINS and shards and len({shard.file for shard in shards}) == len(shards), (origin, shards)
    content = {
        "format": "vesselgan-shards",
        "format_version": FORMAT_VERSION,
        "made_by": f"vesselgan {__version__}",
        "origin": origin,
        "patch_shape": [int(n) for n in patch_shape],
        "spacing_mm": [float(s) for s in spacing_mm],
        "upper_percentile": upper_percentile,
        "count": sum(shard.count for shard in shards),
        "subjects": subjects,
        "shards": [asdict(shard) for shard in shards],
        "extra": extra,
    }
    path = Path(folder) / MANIFEST
    try:
        write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); make room and start again") from error
    return path


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a set of shards. Raises DataError if it is missing, damaged, newer or inconsistent."""
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{folder}: no shards here ({MANIFEST} is missing); make them: python -m data_prep.build_shards, "
            "or launch/generate.py for synthetic ones"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); make the shards again") from error
    if not isinstance(content, dict) or content.get("format") != "vesselgan-shards":
        raise DataError(f"{path}: not a manifest of shards; name the folder that holds one")
    check_version(path, content.get("format_version"), content.get("made_by"))
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); make the shards again") from error


def _parse(content: dict[str, Any]) -> Manifest:
    """Raises KeyError, TypeError, ValueError or AttributeError for what breaks the format."""
    shards = tuple(ShardInfo(**entry) for entry in content["shards"])
    patch_shape: Any = tuple(operator.index(n) for n in content["patch_shape"])
    spacing_mm: Any = tuple(float(s) for s in content["spacing_mm"])
    if len(patch_shape) != 3 or min(patch_shape) < 1:
        raise ValueError(f"patch_shape {patch_shape}")
    if len(spacing_mm) != 3 or not all(0 < s < 1e6 for s in spacing_mm):
        raise ValueError(f"spacing_mm {spacing_mm}")
    if content["origin"] not in ORIGINS:
        raise ValueError(f"origin {content['origin']!r} is not one of {ORIGINS}")
    for shard in shards:
        if shard.file != os.path.basename(shard.file) or shard.file in ("", ".", ".."):
            raise ValueError(f"shard {shard.file!r} is not a plain file name")
        if operator.index(shard.count) < 1 or operator.index(shard.bytes) < 1 or len(shard.sha256) != 64:
            raise ValueError(f"shard {shard.file!r} has no patches, bytes or sha256")
    if not shards or sum(shard.count for shard in shards) != content["count"]:
        raise ValueError(f"count is {content['count']}, the shards' counts sum to {sum(s.count for s in shards)}")
    subjects = {str(name): {**entry} for name, entry in content["subjects"].items()}
    return Manifest(
        origin=content["origin"],
        patch_shape=patch_shape,
        spacing_mm=spacing_mm,
        upper_percentile=content["upper_percentile"],
        count=content["count"],
        subjects=subjects,
        shards=shards,
        extra={**content["extra"]},
        made_by=str(content["made_by"]),
    )


def content_hash(folder: str | Path) -> str:
    """sha256 over the shards' sha256 in the manifest's order, which identifies the patches and their order."""
    digests = "".join(shard.sha256 for shard in read_manifest(folder).shards)
    return hashlib.sha256(digests.encode("ascii")).hexdigest()


def intensities(stored_XYZ: np.ndarray, scaling: str) -> np.ndarray:
    """float32 in [0, 255] from an image as stored (uint16).

    `volume`: the limits of the whole volume, as the record was made. `patch`: the authors' minimum and maximum of each
    patch; a constant patch becomes 0. Raises UsageError for any other value.
    """
    if scaling == "volume":
        return np.divide(stored_XYZ, np.float32(STEPS_PER_UNIT), dtype=np.float32)
    if scaling != "patch":
        raise UsageError(f"data.scaling={scaling!r} is not one of {', '.join(SCALINGS)}")
    low, high = int(stored_XYZ.min()), int(stored_XYZ.max())
    # 65535 * 255 is exact in float32, so the largest voxel becomes 255 exactly.
    return (stored_XYZ - np.uint16(low)).astype(np.float32) * np.float32(255) / np.float32(max(high - low, 1))


class ShardSet:
    """The records of one folder, numbered 0 .. len - 1 in the manifest's order.

    Reads the manifest and checks that every shard exists with its size; a shard is opened and checked on first read.
    Handles belong to one process: a forked or spawned one opens its own.
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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def shard_of(self, i: int) -> str:
        """File name of the shard that holds record i."""
        return self.manifest.shards[self._locate(i)[0]].file

    def subject(self, i: int) -> str:
        """The subject of record i."""
        shard, row = self._shard(i)
        return shard.subject(row)

    def kind(self, i: int) -> str:
        """`grid`, `vessel` or `synthetic`."""
        shard, row = self._shard(i)
        return _KIND_NAMES[shard.tables["kind"][row]]

    def image_XYZ(self, i: int) -> np.ndarray:
        """float32 in [0, 255], at the volume's scaling."""
        return self.read_pair(i, scaling="volume", label_threshold=0.0)[0]

    def label(self, i: int, threshold: float) -> np.ndarray:
        """uint8 {0, 1}: the stored label of a real patch, score >= threshold of a synthetic one."""
        shard, row = self._shard(i)
        if self.origin == "real":
            return shard.read("label", row)
        return (shard.read("score", row).astype(np.float32) >= threshold).astype(np.uint8)

    def stored_pair(self, i: int, *, label_threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """(image uint16 as stored, label uint8): the smallest form of a pair; see `intensities`."""
        shard, row = self._shard(i)
        return shard.read("image", row), self.label(i, label_threshold)

    def read_pair(self, i: int, *, scaling: str, label_threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """(image float32 in [0, 255], label uint8 {0, 1}) of record i."""
        stored, label = self.stored_pair(i, label_threshold=label_threshold)
        return intensities(stored, scaling), label

    def record(self, i: int) -> Record:
        """Record i as it was written."""
        shard, row = self._shard(i)
        tables = shard.tables
        return Record(
            image_XYZ=intensities(shard.read("image", row), "volume"),
            label_XYZ=shard.read("label", row),
            subject=shard.subject(row),
            corner=tuple(tables["corner"][row].tolist()),
            kind=_KIND_NAMES[tables["kind"][row]],
            limits=tuple(tables["limits"][row].tolist()),
            num_clipped=int(tables["num_clipped"][row]),
            score_XYZ=shard.read("score", row) if self.origin == "synthetic" else None,
        )

    def close(self) -> None:
        """Closes the open shards; the next read opens its own again."""
        for shard in self._open.values():
            shard.close()
        self._open = {}

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)} in {self.folder}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        return number, int(i - self._ends[number] + self.manifest.shards[number].count)

    def _shard(self, i: int) -> tuple[ShardFile, int]:
        """The open shard of record i and the row in it."""
        if self._process != os.getpid():  # a handle that came through fork belongs to the parent
            self._open, self._process = {}, os.getpid()
        number, row = self._locate(i)
        if number not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self._open.pop(next(iter(self._open))).close()
            info = self.manifest.shards[number]
            self._open[number] = ShardFile(
                self.folder / info.file, count=info.count, patch_shape=self.patch_shape, origin=self.origin
            )
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
        if deep and sha256_of(path) != info.sha256:
            return [f"{path}: its bytes changed (sha256 differs from the manifest's){after}"]
        shard = ShardFile(path, count=info.count, patch_shape=manifest.patch_shape, origin=manifest.origin)
    except DataError as error:
        return [str(error)]
    except OSError as error:
        return [f"{path}: cannot be read ({error.strerror}){after}"]
    unknown = [name for name in shard.subject_ids if name not in manifest.subjects]
    problems = [f"{path}: subject {name} is not in the manifest{after}" for name in unknown]
    try:
        problems += [f"{path}: {problem}{after}" for problem in (shard.value_problems() if deep else [])]
    except DataError as error:
        problems.append(str(error))
    finally:
        shard.close()
    return problems


def _size_problem(folder: Path, info: ShardInfo) -> str | None:
    path = folder / info.file
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: shard is missing or not readable ({error.strerror})"
    return None if size == info.bytes else f"{path}: shard has {size} bytes, the manifest says {info.bytes}"
