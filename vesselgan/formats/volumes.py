"""NIfTI in and out.

Inside the project a volume lies on the closest canonical grid (RAS: x to the right, y to the front, z up), whatever the
file's own axes; `write_like` takes an array back to a file's grid.
"""

# X Y Z voxels of the canonical grid

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

from vesselgan.core.atomic_io import PartialFile
from vesselgan.core.errors import DataError, ResourceError, UsageError, check_readable
from vesselgan.formats.nifti import Header, axes_of, format_sizes, read_header, read_voxels

__all__ = ["Header", "Volume", "grid_difference", "read_header", "read_image", "read_label", "read_mask", "write_like"]
__all__ += ["is_written", "sha256_of_voxels", "write_volume"]

MAX_LABEL_VALUES = 32
CLASS_TOLERANCE = 0.1
"""Of a class from its integer: 50 classes that a float array's header scales to 8 bits are up to this far off."""
AFFINE_TOLERANCE_MM = 0.01  # above the rounding of stored affines (about 1e-3 mm)
AFFINE_TOLERANCE_VOXELS = 0.05


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
    """The header's notes and those of reading the voxels."""
    values: tuple[float, ...] = ()
    """The values that a label file held, at most MAX_LABEL_VALUES + 1 of them."""


def read_image(path: str | Path, *, nan_value: float | None = None) -> Volume:
    """An image as float32. `nan_value` replaces NaN and infinite voxels, which are a DataError without it."""
    header, raw = read_voxels(Path(path))
    notes = header.notes
    is_bad = ~np.isfinite(raw)
    if is_bad.any():
        count, first = int(is_bad.sum()), tuple(int(i) for i in np.argwhere(is_bad)[0])
        problem = f"{count} of {raw.size} voxels are NaN or infinite, the first at {first} (file's axes)"
        if nan_value is None:
            raise DataError(
                f"{path}: {problem}; correct the file, or set data.prepare.nan_value=NUMBER to replace them"
            )
        raw[is_bad] = nan_value
        notes = (*notes, f"{problem}: read as {nan_value:g}")
    if raw.min() == raw.max():
        raise DataError(f"{path}: every voxel is {raw.flat[0]:g}: there is no image in it; remove it from the cohort")
    return _volume(raw, header, notes)


def read_label(
    path: str | Path, *, label_values: Sequence[int] | None = None, label_binarize_threshold: float | None = None
) -> Volume:
    """A label as uint8 {0, 1}: {0, 255} and 0/1.0 are mapped, classes need `label_values`, soft labels
    `label_binarize_threshold`.

    Raises DataError if the values leave open what is vessel. An empty label is returned as it is.
    """
    if label_values is not None and label_binarize_threshold is not None:
        raise UsageError(
            "data.prepare.label_values and data.prepare.label_binarize_threshold exclude each other: set one to null"
        )
    header, raw = read_voxels(Path(path))
    notes = header.notes
    if not np.isfinite(raw).all():
        raise DataError(f"{path}: {int((~np.isfinite(raw)).sum())} label voxels are NaN or infinite; correct the file")
    if label_values is not None:
        if np.abs(raw - np.rint(raw)).max() > CLASS_TOLERANCE:
            raise DataError(
                f"{path}: soft label (values {_format_values(_distinct(raw))}), which holds no classes for "
                "data.prepare.label_values; set where vessel begins: data.prepare.label_binarize_threshold=0.5"
            )
        raw = np.rint(raw)
    values = _distinct(raw)
    if label_values is not None:
        is_vessel = np.isin(raw, np.asarray(label_values, dtype=raw.dtype))
        if set(values) - {0, *label_values}:
            notes = (*notes, f"label values {_format_values(values)}: {_format_values(label_values)} taken as vessel")
    elif label_binarize_threshold is not None:
        is_vessel = raw >= label_binarize_threshold
        notes = (*notes, f"label values {_format_values(values)}: vessel from {label_binarize_threshold:g} on")
    else:
        vessel_value = _vessel_value(Path(path), values)
        is_vessel = raw >= vessel_value / 2
        if vessel_value != 1:
            notes = (*notes, f"label values {_format_values(values)}: {vessel_value:g} taken as vessel")
    return _volume(is_vessel.astype(np.uint8), header, notes, tuple(values))


def read_mask(path: str | Path) -> Volume:
    """A brain mask as uint8 {0, 1}: zero outside, one other value inside. Raises DataError for more values."""
    header, raw = read_voxels(Path(path))
    if num_bad := int((~np.isfinite(raw)).sum()):
        raise DataError(f"{path}: {num_bad} of {raw.size} mask voxels are NaN or infinite; set them to 0")
    values = _distinct(raw)
    if min(values) < 0 or len(set(values) - {0.0}) > 1:
        raise DataError(
            f"{path}: a brain mask is 0 outside and one value inside, not {_format_values(values)}; make it binary "
            "(FSL: fslmaths MASK -bin MASK)"
        )
    inside, notes = max(values), header.notes
    if inside not in (0, 1):
        notes = (*notes, f"mask values {_format_values(values)}: {inside:g} taken as inside")
    return _volume((raw > 0).astype(np.uint8), header, notes, tuple(values))


def sha256_of_voxels(volume_XYZ: np.ndarray) -> str:
    """The same for the same voxels, however they are stored, packed or oriented in a file."""
    digest = hashlib.sha256(f"{volume_XYZ.dtype} {volume_XYZ.shape}".encode())
    digest.update(np.ascontiguousarray(volume_XYZ).data)
    return digest.hexdigest()


def grid_difference(first: Header, second: Header) -> str | None:
    """How the voxel grids of two files differ; None if they agree to both tolerances at every corner.

    Files of different orientation differ even if their canonical grids agree: a mirrored label over an image is the
    commoner cause, and nothing in the header distinguishes the two.
    """
    if first.shape != second.shape or first.file_shape[:3] != second.file_shape[:3]:
        return f"shapes {format_sizes(first.file_shape)} and {format_sizes(second.file_shape)} differ"
    if first.orientation != second.orientation:
        return f"orientations differ: {first.orientation} vs {second.orientation}"
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(first.file_shape[:3]) - 1
    difference_mm = float(np.linalg.norm(corners @ (first.file_affine - second.file_affine).T, axis=1).max())
    allowed_mm = min(AFFINE_TOLERANCE_MM, AFFINE_TOLERANCE_VOXELS * min(first.spacing_mm))
    if difference_mm > allowed_mm:
        return f"affines put the same voxel up to {difference_mm:.3g} mm apart (allowed: {allowed_mm:g} mm)"
    return None


def write_like(path: str | Path, array_XYZ: np.ndarray, like: str | Path) -> None:
    """Writes a canonical array on the grid of the file `like`: its affine, orientation and shape, none of its text."""
    header = read_header(like)
    if array_XYZ.shape != header.shape:
        raise DataError(
            f"{path}: an array of {format_sizes(array_XYZ.shape)} is not on the grid of {like} "
            f"({format_sizes(header.shape)})"
        )
    to_file_axes = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), axes_of(header.file_affine))
    array = orientations.apply_orientation(array_XYZ, to_file_axes).reshape(header.file_shape)
    write_volume(path, array, header.file_affine)


def write_volume(path: str | Path, array_XYZ: np.ndarray, affine: np.ndarray, description: str = "") -> None:
    """Writes an array as NIfTI with `affine` in mm; completely or not at all, the same bytes always.

    description: the header's `descrip`, its one text field that is not empty.
    """
    path, content = Path(path), volume_bytes(array_XYZ, affine, description)
    try:
        file = PartialFile(path)
        try:
            file.write(gzip.compress(content, compresslevel=1, mtime=0) if path.suffix == ".gz" else content)
            file.publish()
        finally:
            file.discard()
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}; up to {len(content)} bytes)") from error


def is_written(path: str | Path, array_XYZ: np.ndarray, affine: np.ndarray, description: str = "") -> bool:
    """Whether the file is there and holds what `write_volume` would write, to the last byte."""
    path = Path(path)
    try:
        packed = path.read_bytes()
        content = gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError, zlib.error) as error:
        check_readable(path, error)
        return False
    return content == volume_bytes(array_XYZ, affine, description)


def volume_bytes(array_XYZ: np.ndarray, affine: np.ndarray, description: str = "") -> bytes:
    """Of the NIfTI file that `write_volume` writes, unpacked."""
    smaller = {"bool": np.uint8, "float16": np.float32, "int64": np.int32, "uint64": np.uint32}  # nibabel has no others
    dtype = smaller.get(array_XYZ.dtype.name, array_XYZ.dtype)
    image = nib.Nifti1Image(array_XYZ.astype(dtype, copy=False), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description
    content: bytes = image.to_bytes()
    return content


def _volume(raw: np.ndarray, header: Header, notes: tuple[str, ...], values: tuple[float, ...] = ()) -> Volume:
    axes = axes_of(header.file_affine)
    data_XYZ = np.ascontiguousarray(orientations.apply_orientation(raw, axes))
    return Volume(data_XYZ, header.affine, header.spacing_mm, header.path, header, notes, values)


def _distinct(raw: np.ndarray) -> list[float]:
    """The values in rising order, at most MAX_LABEL_VALUES + 1 of them (a label has few; sorting is slow)."""
    values: list[float] = []
    remaining = raw.ravel(order="K")
    while remaining.size and len(values) <= MAX_LABEL_VALUES:
        values.append(float(remaining[0]))
        remaining = remaining[remaining != remaining[0]]
    return sorted(values)


def _vessel_value(path: Path, values: list[float]) -> float:
    """The value that means vessel in a binary label."""
    top = values[-1]
    if len(values) <= 2 and values[0] in (0.0, top) and (abs(top - 1) < 1e-5 or top in (0.0, 255.0)):
        return top or 1.0
    if any(abs(value - round(value)) > CLASS_TOLERANCE for value in values):
        raise DataError(
            f"{path}: soft label (values {_format_values(values)}); set where vessel begins: "
            "data.prepare.label_binarize_threshold=0.5"
        )
    classes = ",".join(str(round(value)) for value in values if round(value))
    raise DataError(
        f"{path}: label values {_format_values(values)} are not 0 and 1; set which mean vessel: "
        f"data.prepare.label_values=[{classes}]"
    )


def _format_values(values: Sequence[float]) -> str:
    shown = ", ".join(np.format_float_positional(np.float32(value), trim="-") for value in values[:8])
    return f"{{{shown}, ...}}" if len(values) > 8 else f"{{{shown}}}"
