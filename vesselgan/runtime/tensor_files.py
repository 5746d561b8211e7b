"""safetensors files, written tensor by tensor and hashed on the way, read tensor by tensor.

A network's weights and moments are gathered from all ranks one at a time, so rank 0 holds the largest of them and not
their sum (3.7 GB for the paper's largest pair). The bytes are those that the safetensors package would write.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesselgan.core.errors import CheckpointError, NumericError

# In the order in which the format's own writer sorts them: the widest first, so that every tensor is aligned.
NAMES = {torch.int64: "I64", torch.float32: "F32"}
ALIGNMENT = 8
Entry = dict[str, Any]
"""A file's line in a manifest: sha256 and bytes."""


@dataclass(frozen=True)
class Part:
    """A tensor to be written: float32 whatever its type, integers as they are."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fetch: Callable[[], Tensor]
    """Gives the whole tensor; a collective call where ranks hold pieces of it."""

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def part_of(tensor: Tensor, fetch: Callable[[], Tensor] | None = None) -> Part:
    """`tensor` itself, or what `fetch` gives for it in its shape."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return Part(tuple(tensor.shape), dtype, fetch or (lambda: tensor))


def write_parts(path: Path | None, parts: Mapping[str, Part]) -> Entry:
    """Write the parts as safetensors. A collective call: ranks that write nothing give no path.

    OSError when the disk is full, NumericError for a number that is not finite; this rank has then still taken its part
    in every collective.
    """
    pieces = _pieces(parts, is_writer=path is not None)
    try:
        return write_pieces(path, pieces) if path is not None else {}
    finally:
        for _ in pieces:
            pass


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> Entry:
    """Write and fsync the pieces one after the other; a thread takes the checksum meanwhile."""
    digest, num_bytes = hashlib.sha256(), 0
    with ThreadPoolExecutor(1) as hasher, path.open("wb") as file:
        for piece in pieces:
            hashed = hasher.submit(digest.update, piece)
            file.write(piece)
            num_bytes += len(piece)
            hashed.result()
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": num_bytes}


def _pieces(parts: Mapping[str, Part], *, is_writer: bool) -> Iterator[bytes | memoryview]:
    names = sorted(parts, key=lambda name: (list(NAMES).index(parts[name].dtype), name))
    header, end = {}, 0
    for name in names:
        begin, end = end, end + parts[name].num_bytes
        header[name] = {
            "dtype": NAMES[parts[name].dtype],
            "shape": list(parts[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    bad = []
    for name in names:
        tensor = parts[name].fetch()
        if is_writer:
            tensor = tensor.detach().to("cpu", parts[name].dtype).contiguous()
            assert tuple(tensor.shape) == parts[name].shape, name
            bad += [] if is_finite(tensor) else [name]
            yield memoryview(tensor.reshape(-1).numpy()).cast("B")
    # At the end, when every rank has taken its part.
    if bad:
        raise NumericError(
            f"{', '.join(bad[:8])}: numbers that are not finite are never saved; earlier checkpoints are whole. In a "
            "new run directory: lower learning rates, or precision fp32"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is; in one pass, without a copy."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(bool(end.isfinite()) for end in tensor.aminmax())


class TensorFile:
    """A safetensors file whose tensors are read one by one. Other formats, pickles among them, are never tried."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: not readable as safetensors ({error}); no other format is read") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}

    def tensor(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def all(self) -> dict[str, Tensor]:
        return {name: self.tensor(name) for name in self._file.keys()}
