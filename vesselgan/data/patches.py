"""Shards as tensors: a data set of (image, label) patches and the stream of batches that training reads.

N batch, C channel (0 image, 1 vessel label; 2 tissue map where it is asked for), X Y Z voxels
"""

import multiprocessing
import operator
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vesselgan.anatomy.tissue import BRAIN
from vesselgan.core.errors import DataError, ResourceError, UsageError, VesselganError
from vesselgan.data.augment import flip_rotate, sample_orientations
from vesselgan.data.sampler import batch_indices, derangement, steps_per_epoch
from vesselgan.formats.intensities import STEPS_PER_UNIT, check_scaling, from_stored
from vesselgan.formats.shards import ShardSet

INTENSITIES = ("signed", "byte")
CACHE_BYTES = 256 * 2**20
HALF_RANGE = 127.5
"""Of intensities 0..255, which are -1..1 in the GAN."""
HALF_STEPS = HALF_RANGE * STEPS_PER_UNIT  # of 0..65535
WORKER_TIMEOUT_S = 300.0
_POLL_S = 1.0
_WHY_KILLED = {
    signal.SIGKILL: " (usually: out of memory)",
    signal.SIGBUS: " (usually: /dev/shm is too small)",
}

# A rank's slice of a batch: indices of patches, and their orientations (None: as stored).
BatchSlice = tuple[list[int], list[int] | None]


class BatchSlices(Protocol):
    """A rank's slices of the batches, in order; iterable repeatedly."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[BatchSlice]: ...


class ShardDataset(Dataset):
    """Every patch of one or more shard sets, in their order, as float32 [C, X, Y, Z]: image, then label {0, 1}.

    scaling: `volume` or `patch` (see formats.intensities). intensity: `signed` gives the image in [-1, 1] for
    the GAN, `byte` in [0, 255] for the U-Net. label_threshold acts on synthetic sets alone; None: as their manifests
    recommend. Negative numbers count from the end; a slice gives a batch.
    shuffle_labels_seed: the control, in which every image gets another patch's label.
    with_tissue: a third channel, the tissue map as 0 (outside), 0.5 (head), 1 (brain); DataError where there is none.
    The main process caches patches as stored (3 bytes a voxel, 4 with tissue maps) if all fit into cache_bytes; workers
    cache none.
    Raises DataError for sets of different patch shapes, UsageError for no set and for an unknown choice.
    """

    def __init__(
        self,
        shard_sets: ShardSet | str | Path | Sequence[ShardSet | str | Path],
        *,
        scaling: str = "volume",
        label_threshold: float | None = None,
        intensity: str = "signed",
        shuffle_labels_seed: int | None = None,
        with_tissue: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        sets = [shard_sets] if isinstance(shard_sets, ShardSet | str | Path) else shard_sets
        self.shard_sets = [item if isinstance(item, ShardSet) else ShardSet(item) for item in sets]
        self.patch_shape = _common_patch_shape(self.shard_sets)
        if intensity not in INTENSITIES:
            raise UsageError(f"intensity={intensity!r} is not one of {', '.join(INTENSITIES)}")
        check_scaling(scaling)
        self.scaling, self.label_threshold, self.intensity = scaling, label_threshold, intensity
        self._ends = np.cumsum([len(shards) for shards in self.shard_sets])
        self._label_of = None if shuffle_labels_seed is None else derangement(len(self), shuffle_labels_seed)
        self.num_channels = 3 if with_tissue else 2
        self._is_cached = (1 + self.num_channels) * int(np.prod(self.patch_shape)) * len(self) <= cache_bytes
        self._cache: dict[int, tuple[np.ndarray, ...]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: SupportsIndex | slice) -> Tensor:
        if isinstance(i, slice):
            return self.read(range(*i.indices(len(self))))
        return self.read([operator.index(i)])[0]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": {}}

    def read(self, indices: Sequence[int], orientations: Sequence[int] | None = None) -> Tensor:
        """float32 [N, C, X, Y, Z] of these patches, each in its orientation (see data.augment)."""
        batch_NCXYZ = torch.empty((len(indices), self.num_channels, *self.patch_shape))
        for patch_CXYZ, i in zip(batch_NCXYZ, indices, strict=True):
            image_XYZ, label_XYZ, *tissue = self._stored(i)
            if self._label_of is not None:
                _, label_XYZ, *_ = self._stored(self._label_of[i])
            self._fill(patch_CXYZ[0], image_XYZ)
            patch_CXYZ[1].copy_(torch.from_numpy(label_XYZ))
            for tissue_XYZ in tissue:
                torch.div(torch.from_numpy(tissue_XYZ), BRAIN, out=patch_CXYZ[2])
        if not orientations:  # as stored, or a batch without patches
            return batch_NCXYZ
        return torch.stack([flip_rotate(*pair) for pair in zip(batch_NCXYZ, orientations, strict=True)])

    def _fill(self, image_XYZ: Tensor, stored_XYZ: np.ndarray) -> None:
        """Writes the image of a stored patch in place: another copy would cost as much as reading it."""
        is_signed = self.intensity == "signed"
        if self.scaling == "volume":
            image_XYZ.copy_(torch.from_numpy(stored_XYZ))
            if is_signed:  # one pass instead of two; 0 and 65535 become -1 and 1 to the bit, the others to 3e-8
                torch.add(image_XYZ.new_tensor(-1.0), image_XYZ, alpha=1 / HALF_STEPS, out=image_XYZ)
            else:
                image_XYZ.div_(STEPS_PER_UNIT)
            return
        image_XYZ.copy_(torch.from_numpy(from_stored(stored_XYZ, self.scaling)))
        if is_signed:
            image_XYZ.div_(HALF_RANGE).sub_(1)

    def shards_of(self, indices: Sequence[int]) -> list[str]:
        """Paths of the shards that hold these patches, for a message."""
        rows = [self._locate(i) for i in indices]
        return sorted({str(shards.folder / shards.shard_of(row)) for shards, row in rows})

    def _stored(self, i: int) -> tuple[np.ndarray, ...]:
        """Image, label and, where it is asked for, tissue map."""
        i = self._index(i)
        if (patch := self._cache.get(i)) is None:
            shards, row = self._locate(i)
            patch = shards.stored_image(row), shards.label(row, self.label_threshold)
            patch += (shards.tissue(row),) if self.num_channels == 3 else ()
            if self._is_cached and get_worker_info() is None:
                self._cache[i] = patch
        return patch

    def _index(self, i: int) -> int:
        """`i` counted from the start."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"patch {i} of {len(self)}")
        return int(i) % len(self)

    def _locate(self, i: int) -> tuple[ShardSet, int]:
        i = self._index(i)
        number = int(np.searchsorted(self._ends, i, side="right"))
        return self.shard_sets[number], int(i - self._ends[number] + len(self.shard_sets[number]))


def stream(
    dataset: ShardDataset,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    of_rank: slice = slice(None),
    num_workers: int = 0,
    augment: bool = False,
    start_method: str | None = None,
    timeout_s: float = WORKER_TIMEOUT_S,
) -> Iterator[Tensor]:
    """The patches `of_rank`, float32 [N, C, X, Y, Z], of the global batches start .. stop - 1; by default all.

    The global batches, and the orientations of `augment`, depend on seed and position alone. start_method: `fork` or
    `spawn`; None: Python's own.
    Raises UsageError for a batch of more patches than there are. While reading: DataError for a damaged shard,
    ResourceError naming the worker and the shards if a worker dies or gives nothing for timeout_s.
    """
    steps_per_epoch(len(dataset), batch_size)
    assert start >= 0, start
    slices = _ShuffledSlices(len(dataset), batch_size, seed, range(start, stop), of_rank, augment)
    return read_batches(dataset, slices, num_workers, start_method=start_method, timeout_s=timeout_s)


def read_batches(
    dataset: ShardDataset,
    slices: BatchSlices,
    num_workers: int,
    *,
    start_method: str | None = None,
    timeout_s: float = WORKER_TIMEOUT_S,
) -> Iterator[Tensor]:
    """The patches of every slice in order, read by `num_workers` processes. Raises the errors of `stream`."""
    if num_workers == 0:
        return (dataset.read(*batch_slice) for batch_slice in slices)
    return _stream_from_workers(dataset, slices, num_workers, start_method, timeout_s)


class _ShuffledSlices:
    """One rank's slice of each global batch of the shuffled epochs, in order."""

    def __init__(
        self,
        num_patches: int,
        batch_size: int,
        seed: int,
        positions: range,
        of_rank: slice,
        augment: bool,
    ) -> None:
        self.num_patches, self.batch_size, self.seed, self.positions = num_patches, batch_size, seed, positions
        self.of_rank, self.augment = of_rank, augment

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[BatchSlice]:
        for position in self.positions:
            indices = batch_indices(self.num_patches, self.batch_size, self.seed, position)[self.of_rank].tolist()
            orientations = None
            if self.augment:
                orientations = sample_orientations(self.batch_size, self.seed, position)[self.of_rank].tolist()
            yield indices, orientations


class _BatchReader(Dataset):
    """A rank's batch per item. Our errors are returned as values: DataLoader would bury them in a traceback's text."""

    def __init__(self, dataset: ShardDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, batch_slice: BatchSlice) -> Tensor | VesselganError:
        try:
            return self.dataset.read(*batch_slice)
        except VesselganError as error:
            return error


def _stream_from_workers(
    dataset: ShardDataset, slices: BatchSlices, num_workers: int, start_method: str | None, timeout_s: float
) -> Iterator[Tensor]:
    loader = DataLoader(
        _BatchReader(dataset),
        batch_size=None,
        sampler=slices,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_identity,
        timeout=min(_POLL_S, timeout_s),
        multiprocessing_context=start_method,
        generator=torch.Generator(),  # else the global one is drawn from, and a resumed run differs
    )
    batches, workers = _start(loader)
    try:
        for indices, _ in slices:
            batch = _wait(batches, workers, indices, dataset, timeout_s)
            if isinstance(batch, VesselganError):
                raise batch
            yield batch
    finally:
        # A stopped or stuck process ignores SIGTERM, and Python waits for it for ever when it exits.
        for worker in workers:
            worker.kill()


def _start(loader: DataLoader) -> tuple[Iterator, list[BaseProcess]]:
    """Starts the workers. Their death must surface in `_wait`; DataLoader's signal handler would raise anywhere."""
    before, is_main_thread = multiprocessing.active_children(), threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if is_main_thread and handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return batches, [child for child in multiprocessing.active_children() if child not in before]


def _wait(
    batches: Iterator, workers: list[BaseProcess], indices: list[int], dataset: ShardDataset, timeout_s: float
) -> Tensor | VesselganError:
    """The next batch. Raises ResourceError if a worker is dead or silent, whatever DataLoader raises."""
    start = time.monotonic()
    while True:
        try:
            return next(batches)
        except RuntimeError as error:
            remedy = f"while reading {', '.join(dataset.shards_of(indices))}; start again, or with train.num_workers=0"
            for worker in workers:
                if worker.exitcode:
                    cause = _cause_of_death(worker.exitcode)
                    raise ResourceError(f"data worker {worker.pid} {cause} {remedy}") from error
            if time.monotonic() - start >= timeout_s:
                pids = ", ".join(str(worker.pid) for worker in workers)
                raise ResourceError(
                    f"no batch for {timeout_s:g} s from the data workers {pids} {remedy}; is the file system stuck?"
                ) from error
            if "timed out" not in str(error):
                raise


def _cause_of_death(exitcode: int) -> str:
    if exitcode > 0:
        return f"exited with code {exitcode}"
    number = signal.Signals(-exitcode)
    return f"was killed by {number.name}{_WHY_KILLED.get(number, '')}"


def _identity(item: Any) -> Any:
    return item


def _common_patch_shape(shard_sets: list[ShardSet]) -> tuple[int, int, int]:
    if not shard_sets:
        raise UsageError("a data set needs at least one set of shards")
    first = shard_sets[0]
    for other in shard_sets[1:]:
        if other.patch_shape != first.patch_shape:
            raise DataError(
                f"{first.folder} has patches of {list(first.patch_shape)} voxels, {other.folder} of "
                f"{list(other.patch_shape)}; mix sets of one patch shape"
            )
    return first.patch_shape
