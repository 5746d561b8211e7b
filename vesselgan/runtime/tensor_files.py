"""safetensors files, written tensor by tensor with their checksum, read tensor by tensor.

Tensors are gathered from all ranks one at a time: rank 0 holds the largest of them, not their sum (3.7 GB for the
paper's largest pair of networks). The bytes are those that the safetensors package writes.
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

from vesselgan.core.errors import CheckpointError, NumericError, check_readable

# In the order of the format's own writer: the widest first, so that every tensor is aligned.
DTYPES = {torch.int64: "I64", torch.float32: "F32"}
ALIGNMENT = 8
Entry = dict[str, Any]
"""A file's line in a manifest: sha256 and bytes."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is fetched when it is written: floating types as float32, integers as they are."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fetch: Callable[[], Tensor]
    """Returns the whole tensor; a collective call for partitioned ones."""

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def lazy_tensor(tensor: Tensor, fetch: Callable[[], Tensor] | None = None) -> LazyTensor:
    """`tensor` itself, or in its place what `fetch` returns, of the same shape."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return LazyTensor(tuple(tensor.shape), dtype, fetch or (lambda: tensor))


def write_tensors(path: Path | None, tensors: Mapping[str, LazyTensor]) -> Entry:
    """Write a safetensors file. A collective call: ranks other than the writer pass no path.

    OSError for a full disk, NumericError for a number that is not finite, after this rank has taken part in all
    collective calls.
    """
    chunks = _chunks(tensors, is_writer=path is not None)
    try:
        return write_chunks(path, chunks) if path is not None else {}
    finally:
        for _ in chunks:
            pass


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> Entry:
    """Write the chunks and fsync; a thread computes the checksum meanwhile."""
    digest, num_bytes = hashlib.sha256(), 0
    with ThreadPoolExecutor(1) as hasher, path.open("wb") as file:
        for chunk in chunks:
            hashed = hasher.submit(digest.update, chunk)
            file.write(chunk)
            num_bytes += len(chunk)
            hashed.result()
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": num_bytes}


def _chunks(tensors: Mapping[str, LazyTensor], *, is_writer: bool) -> Iterator[bytes | memoryview]:
    names = sorted(tensors, key=lambda name: (list(DTYPES).index(tensors[name].dtype), name))
    header, end = {}, 0
    for name in names:
        begin, end = end, end + tensors[name].num_bytes
        dtype, shape = DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    non_finite = []
    for name in names:
        tensor = tensors[name].fetch()
        if is_writer:
            tensor = tensor.detach().to("cpu", tensors[name].dtype).contiguous()
            assert tuple(tensor.shape) == tensors[name].shape, name
            if not is_finite(tensor):
                non_finite.append(name)
            yield tensor.reshape(-1).numpy().data.cast("B")
    # After the last collective call, so that no rank waits.
    if non_finite:
        raise NumericError(
            f"{', '.join(non_finite[:8])}: numbers that are not finite are never saved; earlier checkpoints are "
            "complete. In a new run directory, lower the learning rates or use precision fp32"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; one pass, no copy."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


class TensorFile:
    """A safetensors file whose tensors are read one by one. No other format is read, pickle least of all."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with open(path, "rb"):
                pass  # safetensors says that a file is missing whatever keeps it from opening it
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            check_readable(path, error)
            raise CheckpointError(f"{path}: not readable as safetensors ({error}); no other format is read") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}

    def tensor(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def all(self) -> dict[str, Tensor]:
        return {name: self.tensor(name) for name in self._file.keys()}
