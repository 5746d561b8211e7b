"""NIfTI in and out, and the intensity scaling that data preparation and segmentation share.

Inside the project a volume lies on the closest canonical grid (RAS: x to the right, y to the front, z up), whatever the
file's own axes; `write_like` turns an array back. A file is read once, into memory claimed only after its header has
proved possible, and to its very end, so that a wrong checksum at the end of a gzip stream is seen.
"""

# X Y Z voxels of the canonical grid

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.spatialimages import HeaderDataError

from vesselgan.errors import DataError, ResourceError, UsageError
from vesselgan.files import PartialFile

MAX_VOXELS = 2**30  # 1024 x 1024 x 1024: four times the largest head scan in use
MAX_GZIP_RATIO = 1032  # the most that deflate can shrink anything
MAX_HEADER_BYTES = 2**26
MAX_LABEL_VALUES = 32
AFFINE_TOLERANCE_MM = 0.01  # above the rounding of stored affines (about 1e-3 mm), far below a voxel
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True)
class Header:
    """What a NIfTI file says of itself, on the canonical grid. Text fields by name only: they may name a patient."""

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    """4 x 4, canonical voxel indices to mm."""
    spacing_mm: tuple[float, float, float]
    """Lengths of the affine's columns: right for oblique scans too."""
    orientation: str
    """Axis codes of the file's own grid, such as `LPS`."""
    file_shape: tuple[int, ...]
    file_affine: np.ndarray
    dtype: np.dtype
    """Number type of the file's voxels, in this machine's byte order."""
    text_fields: tuple[str, ...]
    """Names of the free-text fields that hold something."""
    notes: tuple[str, ...]
    """What was taken for granted, in words."""


@dataclass(frozen=True)
class Volume:
    """A volume on its canonical grid."""

    data_XYZ: np.ndarray
    """float32 (an image) or uint8, 0 or 1 (a label)."""
    affine: np.ndarray
    spacing_mm: tuple[float, float, float]
    path: Path
    header: Header
    notes: tuple[str, ...]
    """The header's notes and what reading the voxels added."""
    values: tuple[float, ...] = ()
    """The values that a label file held, at most MAX_LABEL_VALUES + 1 of them."""


def read_header(path: str | Path) -> Header:
    """The header alone; the voxels are neither read nor given memory. DataError where it cannot be right."""
    path = Path(path)
    with _opened(path) as stream:
        return _describe(path, _nifti_header(path, stream))


def read_image(path: str | Path, *, nan_value: float | None = None) -> Volume:
    """An image as float32. `nan_value` stands in for NaN and infinite voxels, which are a DataError without it."""
    header, raw = _read(Path(path))
    notes = header.notes
    flawed = ~np.isfinite(raw)
    if flawed.any():
        count, first = int(flawed.sum()), tuple(int(i) for i in np.argwhere(flawed)[0])
        what = f"{count} of {raw.size} voxels are NaN or infinite, the first at {first} (file's axes)"
        if nan_value is None:
            raise DataError(f"{path}: {what}; mend the file or give data.prepare.nan_value=NUMBER to stand in for them")
        raw[flawed] = nan_value
        notes = (*notes, f"{what}: read as {nan_value:g}")
    if raw.min() == raw.max():
        raise DataError(f"{path}: every voxel is {raw.flat[0]:g}: there is no image in it; take it out of the cohort")
    return _volume(raw, header, notes)


def read_label(path: str | Path, *, label_values: list[int] | None = None, label_cut: float | None = None) -> Volume:
    """A label as uint8 {0, 1}: {0, 255} and 0/1.0 are mapped, classes need `label_values`, soft labels `label_cut`.

    DataError where the values leave open what is vessel. An empty label is returned as it is.
    """
    if label_values is not None and label_cut is not None:
        raise UsageError(
            "data.prepare.label_values and data.prepare.label_cut exclude each other; set one of them to null"
        )
    header, raw = _read(Path(path))
    notes = header.notes
    if not np.isfinite(raw).all():
        raise DataError(f"{path}: {int((~np.isfinite(raw)).sum())} label voxels are NaN or infinite; mend the file")
    values = _distinct(raw)
    if label_values is not None:
        is_vessel = np.isin(raw, np.asarray(label_values, dtype=raw.dtype))
        notes = (*notes, f"label values {_named(values)}: {_named(label_values)} taken as vessel")
    elif label_cut is not None:
        is_vessel = raw >= label_cut
        notes = (*notes, f"label values {_named(values)}: vessel from {label_cut:g} on")
    else:
        top, note = _binary_top(Path(path), values)
        is_vessel = raw >= top / 2
        notes = (*notes, note) if note else notes
    return _volume(is_vessel.astype(np.uint8), header, notes, tuple(values))


def grid_difference(first: Header, second: Header) -> str | None:
    """Why two files do not share one voxel grid, in words; None when they do (to AFFINE_TOLERANCE_MM at every corner).

    Files of different orientation count as different even where their canonical grids agree: a mirrored label over
    an image is the commoner cause, and nothing in the header tells the two apart.
    """
    if first.shape != second.shape or first.file_shape[:3] != second.file_shape[:3]:
        return f"shapes {_by(first.file_shape)} and {_by(second.file_shape)} differ"
    if first.orientation != second.orientation:
        return f"orientations differ: {first.orientation} vs {second.orientation}"
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(first.file_shape[:3]) - 1
    apart_mm = float(np.linalg.norm(corners @ (first.file_affine - second.file_affine).T, axis=1).max())
    if apart_mm > AFFINE_TOLERANCE_MM:
        return f"affines put the same voxel up to {apart_mm:.3g} mm apart (allowed: {AFFINE_TOLERANCE_MM} mm)"
    return None


def intensity_limits(image_XYZ: np.ndarray, upper_percentile: float) -> tuple[float, float]:
    """The intensities that become 0 and 255: minimum and `upper_percentile` of the voxels that are not zero.

    DataError where the two are not apart.
    """
    voxels = image_XYZ[image_XYZ != 0]
    if voxels.size == 0:
        raise DataError("every voxel of the image is zero; take it out of the cohort")
    low, high = float(voxels.min()), float(np.percentile(voxels, upper_percentile))
    if not low < high:
        raise DataError(
            f"the non-zero voxels from the minimum to the {upper_percentile:g}th percentile are all {low:g}: "
            "nothing to scale; is this an image and not a label?"
        )
    return low, high


def scale_to_255(image_XYZ: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """float32 in [0, 255]: `limits` become 0 and 255, what lies outside is clipped."""
    low, high = limits
    scaled_XYZ = (image_XYZ - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.clip(scaled_XYZ, 0.0, 255.0, out=scaled_XYZ)


def write_like(path: str | Path, array_XYZ: np.ndarray, like: str | Path) -> None:
    """Write a canonical array on the grid of the file `like`: its affine, orientation and shape, none of its text."""
    header = read_header(like)
    if array_XYZ.shape != header.shape:
        raise DataError(
            f"{path}: an array of {_by(array_XYZ.shape)} is not on the grid of {like} ({_by(header.shape)})"
        )
    there = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.io_orientation(header.file_affine)
    )
    array = orientations.apply_orientation(array_XYZ, there).reshape(header.file_shape)
    write_volume(path, array, header.file_affine)


def write_volume(path: str | Path, array_XYZ: np.ndarray, affine: np.ndarray) -> None:
    """Write an array as NIfTI with `affine`, in mm; whole or not at all, the same bytes every time, no text fields."""
    path = Path(path)
    dtype = {"bool": np.uint8, "float16": np.float32, "int64": np.int32}.get(array_XYZ.dtype.name, array_XYZ.dtype)
    image = nib.Nifti1Image(array_XYZ.astype(dtype, copy=False), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    try:
        file = PartialFile(path)
        try:
            file.write(gzip.compress(content, compresslevel=1, mtime=0) if path.suffix == ".gz" else content)
            file.publish()
        finally:
            file.discard()
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}; up to {len(content)} bytes)") from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's content, unpacked when it is gzip, whatever its name. What goes wrong inside becomes a DataError."""
    try:
        with open(path, "rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if is_packed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked
            else:
                yield file
    except _BROKEN as error:
        raise DataError(f"{path}: damaged or cut short ({error}); fetch the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _nifti_header(path: Path, stream: BinaryIO) -> nib.Nifti1Header:
    """Parse the header and its extensions; the stream then stands at the first voxel."""
    block = stream.read(348)
    sizes = {int.from_bytes(block[:4], order) for order in ("little", "big")}
    kind = nib.Nifti1Header if 348 in sizes else nib.Nifti2Header if 540 in sizes else None
    if kind is None:
        raise DataError(f"{path}: not a NIfTI file; convert it to .nii.gz (DICOM: with dcm2niix)")
    block += stream.read(kind.sizeof_hdr - len(block))
    if len(block) < kind.sizeof_hdr:
        raise DataError(f"{path}: cut short inside the header; fetch the file again")
    try:
        offset = int(kind(block, check=False)["vox_offset"])
        if not kind.sizeof_hdr <= offset <= MAX_HEADER_BYTES:
            raise DataError(f"{path}: voxels from byte {offset} on: header and voxels must be one whole file")
        block += stream.read(offset - len(block))
        if len(block) < offset:
            raise DataError(f"{path}: cut short inside the header; fetch the file again")
        return kind.from_fileobj(io.BytesIO(block), check=True)
    except DataError:
        raise
    except (HeaderDataError, ValueError, OverflowError, KeyError) as error:
        raise DataError(f"{path}: not a valid NIfTI header ({error}); convert the file again") from error


def _describe(path: Path, header: nib.Nifti1Header) -> Header:
    """Check what the header claims, before any memory is claimed for it."""
    file_shape = tuple(int(n) for n in header.get_data_shape())
    shape = file_shape[:3]
    if len(file_shape) < 3 or min(file_shape) < 1 or math.prod(file_shape[3:]) != 1 or 1 in shape:
        raise DataError(f"{path}: {_by(file_shape)} is not one 3D volume; extract one (time point), or take it out")
    if math.prod(shape) > MAX_VOXELS:
        raise DataError(f"{path}: the header claims {_by(shape)} voxels, more than {MAX_VOXELS}; the file is damaged")
    if header.get_data_dtype().kind not in "biuf":
        raise DataError(f"{path}: {header.get_value_label('datatype')} voxels; convert it to one number per voxel")
    file_affine = header.get_best_affine().astype(float)
    spacing_mm = np.linalg.norm(file_affine[:3, :3], axis=0)
    if not np.isfinite(file_affine).all() or abs(np.linalg.det(file_affine[:3, :3])) <= 1e-6 * np.prod(spacing_mm):
        raise DataError(f"{path}: its affine is not a grid in space (spacing {_by(spacing_mm)} mm); mend the header")
    axes = orientations.io_orientation(file_affine)
    affine = file_affine @ orientations.inv_ornt_aff(axes, shape)
    return Header(
        path=path,
        shape=tuple(shape[axis] for axis in np.argsort(axes[:, 0])),
        affine=affine,
        spacing_mm=tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0)),
        orientation="".join(orientations.aff2axcodes(file_affine)),
        file_shape=file_shape,
        file_affine=file_affine,
        dtype=header.get_data_dtype().newbyteorder("="),
        text_fields=_text_fields(header),
        notes=_header_notes(header, file_shape),
    )


def _text_fields(header: nib.Nifti1Header) -> tuple[str, ...]:
    filled = [name for name in ("descrip", "aux_file", "db_name", "intent_name") if name in header]
    filled = [name for name in filled if header[name].item().strip(b"\0 ")]
    return (*filled, "extensions") if len(header.extensions) else tuple(filled)


def _header_notes(header: nib.Nifti1Header, file_shape: tuple[int, ...]) -> tuple[str, ...]:
    notes = [f"{_by(file_shape)} read as 3D"] if len(file_shape) > 3 else []
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not (has_sform or has_qform):
        notes.append("no orientation stored: left and right are a guess")
    if has_sform and has_qform and (apart := np.abs(header.get_sform() - header.get_qform()).max()) > 0.1:
        notes.append(f"sform and qform differ by {apart:.3g}: the sform is used")
    return tuple(notes)


def _read(path: Path) -> tuple[Header, np.ndarray]:
    """Header, and voxels as float32 on the file's own grid (3D). Reads to the end of the file."""
    with _opened(path) as stream:
        nifti = _nifti_header(path, stream)
        header = _describe(path, nifti)
        dtype = nifti.get_data_dtype()
        num_bytes = math.prod(header.shape) * dtype.itemsize
        if num_bytes > path.stat().st_size * MAX_GZIP_RATIO:
            raise DataError(f"{path}: too small a file for {_by(header.shape)} voxels; it is damaged")
        content = memoryview(np.empty(num_bytes, dtype=np.uint8))
        filled = 0
        while filled < num_bytes and (count := stream.readinto(content[filled:])):
            filled += count
        if filled < num_bytes:
            raise DataError(f"{path}: cut short: {filled} of {num_bytes} bytes of voxels; fetch the file again")
        while stream.read(2**20):  # gzip compares its checksum only at the end
            pass
    raw = np.ndarray(header.file_shape[:3], dtype=dtype, buffer=content, order="F")
    slope, intercept = nifti.get_slope_inter()
    if slope is None or (slope == 1 and intercept == 0):
        return header, raw.astype(np.float32)
    exact = np.float32 if dtype.itemsize <= 2 else np.float64
    return header, (raw.astype(exact) * exact(slope) + exact(intercept)).astype(np.float32)


def _volume(raw: np.ndarray, header: Header, notes: tuple[str, ...], values: tuple[float, ...] = ()) -> Volume:
    axes = orientations.io_orientation(header.file_affine)
    data_XYZ = np.ascontiguousarray(orientations.apply_orientation(raw, axes))
    return Volume(data_XYZ, header.affine, header.spacing_mm, header.path, header, notes, values)


def _distinct(raw: np.ndarray) -> list[float]:
    """The values in rising order; the search ends at MAX_LABEL_VALUES + 1 (a label has few; sorting is slow)."""
    rest, values = raw.ravel(order="K"), []
    while rest.size and len(values) <= MAX_LABEL_VALUES:
        values.append(float(rest[0]))
        rest = rest[rest != rest[0]]
    return sorted(values)


def _binary_top(path: Path, values: list[float]) -> tuple[float, str | None]:
    """The value that means vessel in a binary label, and a note where it is not plainly 1."""
    top = values[-1]
    if len(values) <= 2 and values[0] in (0.0, top) and (abs(top - 1) < 1e-5 or top in (0.0, 255.0)):
        return top or 1.0, None if top in (0.0, 1.0) else f"label values {_named(values)}: {top:g} taken as vessel"
    if any(value != round(value) for value in values):
        raise DataError(
            f"{path}: soft label (values {_named(values)}); say from where on it is vessel: data.prepare.label_cut=0.5"
        )
    raise DataError(
        f"{path}: label values {_named(values)} are not 0 and 1; "
        f"say which mean vessel: data.prepare.label_values=[{','.join(f'{value:g}' for value in values if value)}]"
    )


def _named(values: list[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:8])
    return f"{{{shown}, ...}}" if len(values) > 8 else f"{{{shown}}}"


def _by(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
