"""Reads NIfTI files: checks the header before it is believed, reads the voxels to the last byte.

nibabel repairs odd headers silently; here its guesses are a DataError, and assumptions are notes.
"""

import gzip
import io
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.spatialimages import HeaderDataError

from vesselgan.core import memory
from vesselgan.core.errors import DataError, ResourceError, check_readable
from vesselgan.core.names import on_one_line

SYNTHETIC = "synthetic"
"""What a generator's volumes say of themselves in `descrip`; no free text."""
MAX_VOXELS = 2**30  # 1024 x 1024 x 1024: four times the largest head scan in use
MAX_GZIP_RATIO = 1032  # of deflate
GZIP_MAGIC = b"\x1f\x8b"
MAX_HEADER_BYTES = 2**26
MAX_PADDING_BYTES = 4096  # zeros to the end of a block; a slice that the header forgets is more
Stream = io.BufferedReader | gzip.GzipFile
Value = TypeVar("Value")
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True)
class Header:
    """A NIfTI header on the canonical grid. Free-text fields by name alone: their content may name a patient."""

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    """4 x 4, canonical voxel indices to mm."""
    spacing_mm: tuple[float, float, float]
    """Lengths of the affine's columns, which hold for oblique scans too."""
    orientation: str
    """Axis codes of the file's own grid, such as `LPS`."""
    file_shape: tuple[int, ...]
    file_affine: np.ndarray
    dtype: np.dtype
    """Number type of the file's voxels, in this machine's byte order."""
    text_fields: tuple[str, ...]
    """Names of the free-text fields that are not empty."""
    notes: tuple[str, ...]
    """Assumptions made, for the user."""
    is_synthetic: bool = False
    """Whether it says that a generator made the volume."""


def read_header(path: str | Path) -> Header:
    """The header alone, without reading voxels. Raises DataError if it cannot be right."""
    path = Path(path)
    with _open(path) as stream:
        return _describe(path, _nifti_header(path, stream))


@contextmanager
def _open(path: Path) -> Iterator[Stream]:
    """The file's content, decompressed if it is gzip, as its name must say. Read errors become DataError."""
    try:
        with open(path, "rb") as file:
            is_gzip = file.read(2) == GZIP_MAGIC
            file.seek(0)
            if is_gzip != path.name.lower().endswith(".gz"):
                kind = "gzip, and its name does not end in .gz" if is_gzip else "not gzip, and its name ends in .gz"
                raise DataError(f"{path}: the content is {kind}: other programs fail on it; rename the file")
            if is_gzip:
                with gzip.open(file) as content:
                    yield content
            else:
                yield file
    except _BROKEN as error:
        raise DataError(f"{path}: damaged or cut short ({error}); fetch the file again") from error
    except OSError as error:
        check_readable(path, error)
        target = f", a link to {on_one_line(os.readlink(path))}" if path.is_symlink() else ""
        raise DataError(f"{path}{target}: cannot be read ({error.strerror or error})") from error


def _nifti_header(path: Path, stream: Stream) -> nib.Nifti1Header:
    """Parses the header and its extensions; leaves the stream at the first voxel."""
    block = stream.read(348)
    sizes = {int.from_bytes(block[:4], order) for order in ("little", "big")}
    kind = nib.Nifti1Header if 348 in sizes else nib.Nifti2Header if 540 in sizes else None
    if kind is None:
        raise DataError(
            f"{path}: not a NIfTI file, it begins with {block[:16]!r}; convert it to .nii.gz (DICOM: with dcm2niix)"
        )
    block += stream.read(kind.sizeof_hdr - len(block))
    if len(block) < kind.sizeof_hdr:
        raise DataError(f"{path}: cut short inside the header; fetch the file again")
    try:
        offset = int(kind(block, check=False)["vox_offset"])
        if not kind.sizeof_hdr <= offset <= MAX_HEADER_BYTES:
            raise DataError(f"{path}: voxels from byte {offset} on: header and voxels must be one file")
        block += stream.read(offset - len(block))
        if len(block) < offset:
            raise DataError(f"{path}: cut short inside the header; fetch the file again")
        header = kind.from_fileobj(io.BytesIO(block), check=True)
    except DataError:
        raise
    except (HeaderDataError, ValueError, OverflowError, KeyError) as error:
        raise DataError(f"{path}: not a valid NIfTI header ({error}); convert the file again") from error
    stored_mm = kind(block[: kind.sizeof_hdr], check=False)["pixdim"][1:4]
    if not ((stored_mm > 0) & np.isfinite(stored_mm)).all():  # nibabel repairs it, others believe it beside an sform
        raise DataError(
            f"{path}: voxels of {format_sizes(stored_mm)} mm; correct pixdim in the header, or convert the file again"
        )
    return header


def _describe(path: Path, header: nib.Nifti1Header) -> Header:
    """Checks what the header claims before memory is allocated for it."""
    file_shape = tuple(int(n) for n in header.get_data_shape())
    shape = file_shape[:3]
    if len(file_shape) < 3 or min(file_shape) < 1 or math.prod(file_shape[3:]) != 1 or 1 in shape:
        raise DataError(
            f"{path}: {format_sizes(file_shape)} is not one 3D volume; extract one (time point), or remove it"
        )
    if math.prod(shape) > MAX_VOXELS:
        raise DataError(
            f"{path}: the header claims {format_sizes(shape)} voxels, more than {MAX_VOXELS}; the file is damaged"
        )
    if header.get_data_dtype().kind not in "biuf":
        raise DataError(f"{path}: {header.get_value_label('datatype')} voxels; convert it to one number per voxel")
    try:
        file_affine = header.get_best_affine() * np.array([*[[_mm_per_unit(header)]] * 3, [1.0]])
    except (HeaderDataError, ValueError) as error:  # a quaternion longer than 1
        raise DataError(f"{path}: its qform is not a rotation ({error}); correct the header") from error
    spacing_mm = np.linalg.norm(file_affine[:3, :3], axis=0)
    axes = axes_of(file_affine) if _is_grid(file_affine) else np.full((3, 2), np.nan)
    if np.isnan(axes).any():  # two columns that nearly agree leave nibabel an axis without a direction
        raise DataError(
            f"{path}: its affine is not a grid in space (spacing {format_sizes(spacing_mm)} mm); correct the header"
        )
    affine = file_affine @ orientations.inv_ornt_aff(axes, shape)
    return Header(
        path=path,
        shape=_three(shape[axis] for axis in np.argsort(axes[:, 0])),
        affine=affine,
        spacing_mm=_three(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0)),
        orientation="".join(orientations.ornt2axcodes(axes)),
        file_shape=file_shape,
        file_affine=file_affine,
        dtype=header.get_data_dtype().newbyteorder("="),
        text_fields=(*_text_fields(header), *_gzip_texts(path)),
        notes=_header_notes(header, file_shape),
        is_synthetic=header["descrip"].item().strip(b"\0 ") == SYNTHETIC.encode(),
    )


def _is_grid(affine: np.ndarray) -> bool:
    """Whether its columns are finite and span a space."""
    if not np.isfinite(affine).all():
        return False
    return bool(abs(np.linalg.det(affine[:3, :3])) > 1e-6 * np.prod(np.linalg.norm(affine[:3, :3], axis=0)))


def _mm_per_unit(header: nib.Nifti1Header) -> float:
    """Of xyzt_units, where they are metres or microns; a file without units is in mm."""
    return {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)


def axes_of(affine: np.ndarray) -> np.ndarray:
    """nibabel's orientation of a grid, which the rounding of a stored affine does not change at 45 degrees."""
    cosines = np.eye(4)
    cosines[:3, :3] = np.round(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0), 3)
    return orientations.io_orientation(cosines)


def _three(values: Iterable[Value]) -> tuple[Value, Value, Value]:
    x, y, z = values
    return x, y, z


def _text_fields(header: nib.Nifti1Header) -> tuple[str, ...]:
    names = ("descrip", "aux_file", "db_name", "data_type", "intent_name")
    texts = {name: header[name].item().strip(b"\0 ") for name in names if name in header}
    filled = [name for name, text in texts.items() if text not in (b"", SYNTHETIC.encode())]
    return (*filled, "extensions") if len(header.extensions) else tuple(filled)


def _gzip_texts(path: Path) -> tuple[str, ...]:
    """`gzip name` if a gzip file stores another name than its own, `gzip comment` if it stores a comment."""
    with open(path, "rb") as file:
        head = file.read(2**16)
    if head[:2] != GZIP_MAGIC:
        return ()
    flags, rest = head[3], head[10:]
    if flags & 4:
        rest = rest[2 + int.from_bytes(rest[:2], "little") :]
    fields = []
    if flags & 8:
        name, _, rest = rest.partition(b"\0")
        fields += ["gzip name"] if os.fsdecode(name) not in ("", path.name, path.name.removesuffix(".gz")) else []
    if flags & 16:
        fields += ["gzip comment"] if rest.partition(b"\0")[0] else []
    return tuple(fields)


def _header_notes(header: nib.Nifti1Header, file_shape: tuple[int, ...]) -> tuple[str, ...]:
    notes = [f"{format_sizes(file_shape)} read as 3D"] if len(file_shape) > 3 else []
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not (has_sform or has_qform):
        notes.append("no orientation stored: left and right are a guess")
    if has_sform and has_qform:
        try:
            difference = np.abs(header.get_sform() - header.get_qform()).max()
        except (HeaderDataError, ValueError):
            notes.append("the qform is not a rotation: the sform is used")
        else:
            notes += [f"sform and qform differ by {difference:.3g}: the sform is used"] if difference > 0.1 else []
    return tuple(notes)


def read_voxels(path: Path) -> tuple[Header, np.ndarray]:
    """Header, and voxels as float32 on the file's own grid (3D). Reads to the end of the file.

    Raises ResourceError if the voxels that the header claims do not fit into memory.
    """
    with _open(path) as stream:
        nifti = _nifti_header(path, stream)
        header = _describe(path, nifti)
        dtype, (slope, intercept) = nifti.get_data_dtype(), _slope_and_intercept(path, nifti)
        num_bytes = math.prod(header.shape) * dtype.itemsize
        if num_bytes > path.stat().st_size * MAX_GZIP_RATIO:
            raise DataError(f"{path}: too small a file for {format_sizes(header.shape)} voxels; it is damaged")
        _check_memory(path, header)
        content = np.empty(num_bytes, dtype=np.uint8)
        filled = 0
        while filled < num_bytes and (count := stream.readinto(content[filled:].data)):
            filled += count
        if filled < num_bytes:
            raise DataError(f"{path}: cut short: {filled} of {num_bytes} bytes of voxels; fetch the file again")
        _check_end(path, header, stream)
    raw = np.ndarray(header.file_shape[:3], dtype=dtype, buffer=content, order="F")
    if slope == 1 and intercept == 0:
        return header, raw.astype(np.float32)
    exact: Any = np.float32 if dtype.itemsize <= 2 else np.float64
    return header, (raw.astype(exact) * exact(slope) + exact(intercept)).astype(np.float32)


def is_whole(path: Path) -> bool:
    """Whether a volume is there and can be read to its end."""
    try:
        return path.is_file() and read_voxels(path)[1].size > 0
    except DataError:
        return False


def _slope_and_intercept(path: Path, header: nib.Nifti1Header) -> tuple[float, float]:
    """(1, 0) if the header has none."""
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise DataError(f"{path}: {error}: correct scl_inter in the header, or convert the file again") from error
    return (1.0, 0.0) if slope is None else (slope, intercept)


def _check_end(path: Path, header: Header, stream: Stream) -> None:
    """Reads to the end, where gzip compares its checksum. Raises DataError for more than padding behind the voxels."""
    size = 0
    while chunk := stream.read(2**20):
        size += len(chunk)
        if size > MAX_PADDING_BYTES or chunk.count(0) < len(chunk):
            raise DataError(
                f"{path}: more voxels follow the {format_sizes(header.shape)} that its header claims; "
                "correct dim in the header, or fetch the file again"
            )


def _check_memory(path: Path, header: Header) -> None:
    """Raises ResourceError if the voxels do not fit: as stored, as float32, and on the canonical grid."""
    needed = math.prod(header.shape) * (header.dtype.itemsize + 2 * 4)
    free = memory.available_bytes()
    if needed > free:
        raise ResourceError(
            f"{path}: its {format_sizes(header.shape)} voxels need {memory.format_bytes(needed)} of memory, "
            f"{memory.format_bytes(free)} are available; ask for more memory, or remove the volume if it cannot be so "
            "large"
        )


def format_sizes(numbers: Sequence[float]) -> str:
    """`312 x 384 x 127`."""
    return " x ".join(f"{number:g}" for number in numbers)
