"""Writes, opens and checks one HDF5 file of paired patches. The docstring of formats.shards is its format."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from vesselgan.anatomy.tissue import BRAIN
from vesselgan.core.atomic_io import PartialFile, describe, sha256_of
from vesselgan.core.errors import DataError, NewerFormatError, ResourceError, check_readable
from vesselgan.core.memory import format_bytes
from vesselgan.core.names import check_id
from vesselgan.core.version import __version__
from vesselgan.formats.checksums import read_chunk
from vesselgan.formats.intensities import to_stored

FORMAT_VERSION = 1
KINDS = {"grid": 0, "vessel": 1, "synthetic": 2}
ORIGINS = ("real", "synthetic")
_FORMAT = "vesselgan-shard"
_SCALE = 255 / 65535
_VOXELS = {"image": "u2", "label": "u1", "score": "f2", "tissue": "u1"}
_TABLES: dict[str, tuple[str, tuple[int, ...]]] = {
    "subject": ("i4", ()),
    "corner": ("i4", (3,)),
    "kind": ("u1", ()),
    "limits": ("f8", (2,)),
    "num_clipped": ("i8", ()),
}


@dataclass(frozen=True)
class Record:
    """One patch: image and label together. Arrays X x Y x Z."""

    image_XYZ: np.ndarray
    """float32 in [0, 255]"""
    label_XYZ: np.ndarray
    """uint8, 0 or 1"""
    subject: str
    corner: tuple[int, int, int]
    """First voxel of the patch in the canonical volume."""
    kind: str
    """`grid`, `vessel` (centred on one) or `synthetic`"""
    limits: tuple[float, float]
    """Intensities of the volume that became 0 and 255."""
    num_clipped: int
    """Non-zero voxels of the whole volume outside the limits."""
    score_XYZ: np.ndarray | None = None
    """float16 in [0, 1]: the generator's label channel; synthetic records alone"""
    tissue_XYZ: np.ndarray | None = None
    """uint8: OUTSIDE, HEAD or BRAIN of the tissue map; real records alone, all of a shard's or none"""


@dataclass(frozen=True)
class ShardInfo:
    """A shard as the manifest lists it; `file` is a name without folders."""

    file: str
    count: int
    bytes: int
    sha256: str


def write_shard(
    path: str | Path, records: Iterable[Record], *, patch_shape: tuple[int, int, int], origin: str
) -> ShardInfo:
    """Writes one shard completely or not at all, over an existing one. Takes the records one at a time.

    Raises DataError for a record that breaks the contract, ResourceError (with the space needed) if the disk is full;
    the partial file is then removed.
    """
    assert origin in ORIGINS, origin
    path = Path(path)
    patch_bytes = int(np.prod(patch_shape)) * (5 if origin == "synthetic" else 4)
    expected, tables = operator.length_hint(records, 0), list[tuple]()
    try:
        partial = PartialFile(path)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be created ({error.strerror}); wait or choose another folder") from error
    try:
        with h5py.File(partial, "w", libver=("v110", "v110"), track_times=False, rdcc_nbytes=0) as file:
            voxels: dict[str, h5py.Dataset] = {}
            for record in records:
                voxels = voxels or _create_voxels(file, patch_shape, record)
                tables.append(_append(voxels, len(tables), record, patch_shape=patch_shape, origin=origin, path=path))
                if partial.error is not None:
                    raise partial.error
            if not tables:
                raise DataError(f"{path}: no patches to write; check that the subjects have any")
            _finish(file, tables, origin)
        partial.publish()
    except Exception as error:
        if partial.error is None:  # not the disk: a bad record, or its maker
            raise
        needed = f"{'about' if expected else 'at least'} {format_bytes(max(expected, len(tables)) * patch_bytes)}"
        raise ResourceError(
            f"{path}: {describe(partial.error)} at patch {len(tables)}; this shard needs {needed} free: "
            "make room and start again (finished shards are kept)"
        ) from error
    finally:
        partial.discard()
    return ShardInfo(path.name, len(tables), path.stat().st_size, sha256_of(path))


def _create_voxels(file: h5py.File, patch_shape: tuple[int, ...], first: Record) -> dict[str, h5py.Dataset]:
    absent = {"score": first.score_XYZ is None, "tissue": first.tissue_XYZ is None}
    names = [name for name in _VOXELS if not absent.get(name)]
    options = {"maxshape": (None, *patch_shape), "chunks": (1, *patch_shape), "fletcher32": True, "track_times": False}
    voxels = {name: file.create_dataset(name, (0, *patch_shape), _VOXELS[name], **options) for name in names}
    voxels["image"].attrs["scale"] = _SCALE
    return voxels


def _append(
    voxels: dict[str, h5py.Dataset],
    number: int,
    record: Record,
    *,
    patch_shape: tuple[int, ...],
    origin: str,
    path: Path,
) -> tuple:
    """Checks one record and writes its voxels; returns its row of the tables, which are written at the end."""
    image, label, score, tissue = record.image_XYZ, record.label_XYZ, record.score_XYZ, record.tissue_XYZ
    assert image.shape == label.shape == patch_shape, (image.shape, label.shape, patch_shape)
    assert image.dtype == np.float32 and label.dtype == np.uint8, (image.dtype, label.dtype)
    assert (origin == "synthetic") == (record.kind == "synthetic") == (score is not None), (origin, record.kind)
    where = f"{path}: patch {number} (subject {record.subject}, corner {record.corner})"
    if label.max() > 1:
        raise DataError(f"{where}: label {label.max()} is neither 0 nor 1; set the vessel's values (label_values)")
    try:
        arrays = {"image": to_stored(image), "label": label}
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if score is not None:
        assert score.shape == patch_shape and score.dtype == np.float16, (score.shape, score.dtype)
        if not (score.min() >= 0 and score.max() <= 1):
            raise DataError(f"{where}: label score outside [0, 1] or not finite; the generator is not usable")
        arrays["score"] = score
    assert (tissue is not None) == ("tissue" in voxels), "all records of a shard have a tissue map, or none"
    if tissue is not None:
        assert origin == "real" and tissue.shape == patch_shape and tissue.dtype == np.uint8 and tissue.max() <= BRAIN
        arrays["tissue"] = tissue
    for name, dataset in voxels.items():
        dataset.resize(number + 1, axis=0)
        dataset[number] = arrays[name]
    return record.subject, record.corner, KINDS[record.kind], record.limits, record.num_clipped


def _finish(file: h5py.File, tables: list[tuple], origin: str) -> None:
    """Writes the tables, then the attributes, then `complete`."""
    subjects, corners, kinds, limits, clipped = zip(*tables, strict=True)
    ids = list(dict.fromkeys(subjects))
    rows = {subject: row for row, subject in enumerate(ids)}
    encoded = np.array([subject.encode("utf-8") for subject in ids])
    assert all(ids) and encoded.dtype.itemsize > 0, ids
    columns = ([rows[subject] for subject in subjects], corners, kinds, limits, clipped)
    arrays = {name: np.array(column, _TABLES[name][0]) for name, column in zip(_TABLES, columns, strict=True)}
    for name, array in {"subject_id": encoded, **arrays}.items():
        dtype = h5py.enum_dtype(KINDS, basetype="u1") if name == "kind" else array.dtype
        file.create_dataset(name, data=array, dtype=dtype, chunks=array.shape, fletcher32=True, track_times=False)
    # Fixed width: HDF5 keeps other strings in a heap without a checksum; one flipped bit makes it read for ever.
    for name, text in (("format", _FORMAT), ("made_by", f"vesselgan {__version__}"), ("origin", origin)):
        file.attrs[name] = np.bytes_(text.encode("utf-8"))
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["count"] = len(tables)
    file.flush()
    file.attrs["complete"] = 1


class ShardFile:
    """One complete shard, open for reading. Raises DataError, naming the file, for what breaks the format.

    Raises ResourceError if the system cannot read it now.
    """

    def __init__(self, path: Path, *, count: int, patch_shape: tuple[int, int, int], origin: str) -> None:
        self.path, self.origin = path, origin
        try:
            # rdcc_nbytes=0: each patch is read once, and the default cache would keep 8 MiB per data set and worker.
            self.file = h5py.File(path, "r", locking=False, rdcc_nbytes=0)
        except Exception as error:  # HDF5 answers a damaged file with many exceptions
            check_readable(path, error)
            raise self._damaged(f"cannot be opened ({_first_line(error)})") from error
        try:
            self._check_attributes(count)
            self.voxels = {
                name: self._dataset(name, dtype, (count, *patch_shape))
                for name, dtype in _VOXELS.items()
                if (name != "score" or origin == "synthetic") and (name != "tissue" or name in self.file)
            }
            self.tables = {
                name: self._dataset(name, dtype, (count, *tail))[:] for name, (dtype, tail) in _TABLES.items()
            }
            names = self._dataset("subject_id", None, None)[:]
            self.subject_ids = [check_id(bytes(name).decode("utf-8"), path) for name in names]
            self._check_tables()
        except DataError:
            self.file.close()
            raise
        except Exception as error:
            self.file.close()
            check_readable(path, error)
            raise self._damaged(f"cannot be read ({_first_line(error)})") from error

    def read(self, name: str, row: int) -> np.ndarray:
        """One patch of `image` (as stored), `label`, `score` or `tissue`, compared with its checksum."""
        try:
            return read_chunk(self.voxels[name], row)
        except (OSError, RuntimeError, ValueError) as error:
            check_readable(self.path, error)
            raise self._damaged(
                f"patch {row} of data set {name} does not match its checksum or cannot be read"
            ) from error

    def check_voxels(self) -> None:
        """Reads every patch. Raises DataError for one that does not match its checksum."""
        for name in self.voxels:
            for row in range(len(self.tables["kind"])):
                self.read(name, row)

    def subject(self, row: int) -> str:
        return self.subject_ids[self.tables["subject"][row]]

    def value_problems(self) -> list[str]:
        """Messages on values outside their range; reads every patch. Raises DataError for one that cannot be read."""
        problems = []
        for row in range(len(self.tables["kind"])):
            if self.read("label", row).max() > 1:
                problems.append(f"label of patch {row} is neither 0 nor 1")
            if self.origin == "synthetic":
                score = self.read("score", row)
                if not (score.min() >= 0 and score.max() <= 1):
                    problems.append(f"score of patch {row} is outside [0, 1]")
            if "tissue" in self.voxels and self.read("tissue", row).max() > BRAIN:
                problems.append(f"tissue of patch {row} is none of 0, 1 and 2")
        return problems

    def close(self) -> None:
        self.file.close()

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what}; {remedy(self.origin)}")

    def _attribute(self, name: str, holder: h5py.File | h5py.Dataset) -> str | float | None:
        """A number or a fixed-width text; None if it is missing. Checks the type before HDF5 reads the value."""
        if name not in holder.attrs:
            return None
        attribute = holder.attrs.get_id(name)
        if attribute.shape != () or attribute.dtype.kind not in "Siuf":
            raise self._damaged(f"attribute {name} is neither a number nor a text of fixed width")
        value = holder.attrs[name]
        return value.decode("utf-8") if isinstance(value, bytes) else value.item()

    def _check_attributes(self, count: int) -> None:
        names = ("format", "format_version", "made_by", "origin", "count", "complete")
        attributes = {name: self._attribute(name, self.file) for name in names}
        if attributes["format"] != _FORMAT:
            raise self._damaged("not a shard of this project (attribute format is missing or foreign)")
        check_version(self.path, attributes["format_version"], attributes["made_by"])
        if attributes["complete"] != 1:
            raise self._damaged("was never finished (attribute complete is missing)")
        if attributes["origin"] != self.origin:
            raise self._damaged(f"holds {attributes['origin']} patches, the manifest says {self.origin}")
        if attributes["count"] != count:
            raise self._damaged(f"holds {attributes['count']} patches, the manifest says {count}")

    def _dataset(self, name: str, dtype: str | None, shape: tuple[int, ...] | None) -> h5py.Dataset:
        link = self.file.get(name, getlink=True)
        if link is None:
            raise self._damaged(f"data set {name} is missing")
        if not isinstance(link, h5py.HardLink):
            raise self._damaged(f"{name} is a link, which the format forbids")
        dataset = self.file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise self._damaged(f"{name} is not a data set")
        if dataset.external is not None or dataset.is_virtual:
            raise self._damaged(f"data set {name} keeps its values in other files, which the format forbids")
        if dtype is None:
            is_right = dataset.dtype.kind == "S" and dataset.ndim == 1 and dataset.shape[0] > 0
        else:
            is_right = dataset.dtype == np.dtype(dtype) and dataset.shape == shape
        if not is_right:
            wanted = "bytes [S]" if dtype is None else f"{np.dtype(dtype)} {list(shape or ())}"
            raise self._damaged(f"data set {name} is {dataset.dtype} {list(dataset.shape or ())}, expected {wanted}")
        self._check_storage(name, dataset)
        return dataset

    def _check_storage(self, name: str, dataset: h5py.Dataset) -> None:
        """Fletcher32 alone, and every chunk written: a missing chunk reads as zeros without an error."""
        plist = dataset.id.get_create_plist()
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        if filters != [h5py.h5z.FILTER_FLETCHER32]:
            raise self._damaged(f"data set {name} has filters {filters}, expected fletcher32 alone")
        if name in _VOXELS and dataset.chunks != (1, *dataset.shape[1:]):
            raise self._damaged(f"data set {name} has chunks {dataset.chunks}, expected one patch each")
        num_chunks = len(dataset) if name in _VOXELS else 1
        if dataset.id.get_storage_size() != dataset.nbytes + 4 * num_chunks:
            raise self._damaged(f"data set {name} is not written in full")
        if name == "image" and (scale := self._attribute("scale", dataset)) != _SCALE:
            raise self._damaged(f"image has scale {scale}, expected 255/65535")

    def _check_tables(self) -> None:
        rows, kinds = self.tables["subject"], self.tables["kind"]
        if rows.min() < 0 or rows.max() >= len(self.subject_ids) or kinds.max() >= len(KINDS):
            raise self._damaged("the tables name a subject or a kind that does not exist")


def check_version(path: Path, version: object, made_by: object, *, reads: int = FORMAT_VERSION) -> None:
    """Raises DataError unless this program reads the version of a shard or a manifest."""
    if version == reads:
        return
    if isinstance(version, int) and version > reads:
        raise NewerFormatError(
            f"{path}: made by {made_by} in format version {version}, this is vesselgan {__version__} and "
            f"reads {reads}; upgrade vesselgan"
        )
    raise DataError(f"{path}: format version {version!r} is unknown, this program reads {reads}; make the shards again")


def remedy(origin: str) -> str:
    """What to do about a damaged shard."""
    if origin == "synthetic":
        return "remove its folder and make it again: `vesselgan generate`, or `vesselgan build-shards` of its heads"
    return "rebuild it: `vesselgan build-shards data.prepare.repair=true`"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
