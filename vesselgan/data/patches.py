"""Shards as tensors: a data set of (image, label) patches and the stream of batches that training reads.

N batch, C channel (0 image, 1 vessel label), X Y Z voxels
"""

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vesselgan.core.errors import DataError, ResourceError, UsageError, VesselganError
from vesselgan.data.augment import sample_orientations, turn
from vesselgan.data.sampler import batch_indices, derangement, steps_per_epoch
from vesselgan.formats.shard_file import STEPS_PER_UNIT
from vesselgan.formats.shards import SCALINGS, ShardSet, intensities

CACHE_BYTES = 256 * 2**20
HALF_RANGE = 127.5  # of 0..255
HALF_STEPS = HALF_RANGE * STEPS_PER_UNIT  # of 0..65535
WORKER_TIMEOUT_S = 300.0
_POLL_S = 1.0
_WHY_KILLED = {
    signal.SIGKILL: " (usually: out of memory)",
    signal.SIGBUS: " (usually: /dev/shm is too small)",
}

# One rank's part of a batch: indices of patches, and how each is turned (None: not at all).
Share = tuple[list[int], list[int] | None]


class Shares(Protocol):
    """A rank's shares of the batches, in order; iterable again and again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Share]: ...


class PatchDataset(Dataset):
    """Every patch of one or more shard sets, in their order, as float32 [2, X, Y, Z]: image, then label {0, 1}.

    scaling: `volume` or `patch` (see formats.shards.intensities). intensity: `signed` gives the image in [-1, 1] for
    the GAN, `byte` in [0, 255] for the U-Net. label_threshold acts on synthetic sets alone.
    shuffle_labels_seed: the control, in which every image gets another patch's label.
    The process that reads keeps each patch as stored (3 bytes a voxel) if all fit into cache_bytes; workers keep none.
    DataError for sets of unlike patch shapes, UsageError for an unknown scaling.
    """

    def __init__(
        self,
        shard_sets: ShardSet | Sequence[ShardSet],
        *,
        scaling: str,
        label_threshold: float,
        intensity: str,
        shuffle_labels_seed: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.shard_sets = [shard_sets] if isinstance(shard_sets, ShardSet) else list(shard_sets)
        self.patch_shape = _common_patch_shape(self.shard_sets)
        assert intensity in ("signed", "byte"), intensity
        if scaling not in SCALINGS:
            raise UsageError(f"data.scaling={scaling!r} is not one of {', '.join(SCALINGS)}")
        self.scaling, self.label_threshold, self.intensity = scaling, label_threshold, intensity
        self._ends = np.cumsum([len(shards) for shards in self.shard_sets])
        self._label_of = None if shuffle_labels_seed is None else derangement(len(self), shuffle_labels_seed)
        self._is_cached = 3 * int(np.prod(self.patch_shape)) * len(self) <= cache_bytes
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> Tensor:
        return self.read([i])[0]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": {}}

    def read(self, indices: Sequence[int], words: Sequence[int] | None = None) -> Tensor:
        """float32 [N, 2, X, Y, Z] of these patches, each turned by its word (see vesselgan.data.augment)."""
        batch_NCXYZ = torch.empty((len(indices), 2, *self.patch_shape))
        for patch_CXYZ, i in zip(batch_NCXYZ, indices, strict=True):
            image_XYZ, label_XYZ = self._stored(i)
            if self._label_of is not None:
                _, label_XYZ = self._stored(self._label_of[i])
            self._fill(patch_CXYZ[0], image_XYZ)
            patch_CXYZ[1].copy_(torch.from_numpy(label_XYZ))
        if not words:  # no turns, or a batch without patches
            return batch_NCXYZ
        return torch.stack([turn(patch_CXYZ, word) for patch_CXYZ, word in zip(batch_NCXYZ, words, strict=True)])

    def _fill(self, image_XYZ: Tensor, stored_XYZ: np.ndarray) -> None:
        """The image of a stored patch, made in place: a copy in between would cost as much as reading it."""
        is_signed = self.intensity == "signed"
        if self.scaling == "volume":
            image_XYZ.copy_(torch.from_numpy(stored_XYZ))
            if is_signed:  # one pass instead of two; 0 and 65535 become -1 and 1 to the bit, the others to 3e-8
                torch.add(image_XYZ.new_tensor(-1.0), image_XYZ, alpha=1 / HALF_STEPS, out=image_XYZ)
            else:
                image_XYZ.div_(STEPS_PER_UNIT)
            return
        image_XYZ.copy_(torch.from_numpy(intensities(stored_XYZ, self.scaling)))
        if is_signed:
            image_XYZ.div_(HALF_RANGE).sub_(1)

    def shards_of(self, indices: Sequence[int]) -> list[str]:
        """Paths of the shards that hold these patches, to name them in a message."""
        places = [self._locate(i) for i in indices]
        return sorted({str(shards.folder / shards.shard_of(row)) for shards, row in places})

    def _stored(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        i = int(i)
        if (pair := self._cache.get(i)) is None:
            shards, row = self._locate(i)
            pair = shards.stored_pair(row, label_threshold=self.label_threshold)
            if self._is_cached and get_worker_info() is None:
                self._cache[i] = pair
        return pair

    def _locate(self, i: int) -> tuple[ShardSet, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"patch {i} of {len(self)}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        return self.shard_sets[number], int(i - self._ends[number] + len(self.shard_sets[number]))


def stream(
    dataset: PatchDataset,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    augment: bool = False,
    start_method: str | None = None,
    timeout_s: float = WORKER_TIMEOUT_S,
) -> Iterator[Tensor]:
    """This rank's share, float32 [batch_size / world_size, 2, X, Y, Z], of the global batches start .. stop - 1.

    The global batches, and how `augment` turns their patches, depend on seed and position alone. start_method: `fork`
    or `spawn`; null: Python's own.
    At once: UsageError for a batch that does not fit or divide. While reading: DataError for a damaged shard,
    ResourceError naming the worker and the shards when a worker dies or gives nothing for timeout_s.
    """
    steps_per_epoch(len(dataset), batch_size)
    if batch_size % world_size:
        raise UsageError(f"train.batch_size={batch_size} does not divide over {world_size} ranks")
    assert 0 <= start and 0 <= rank < world_size, (start, rank, world_size)
    shares = _Shares(len(dataset), batch_size, seed, range(start, stop), rank, world_size, augment)
    return read_shares(dataset, shares, num_workers, start_method=start_method, timeout_s=timeout_s)


def read_shares(
    dataset: PatchDataset,
    shares: Shares,
    num_workers: int,
    *,
    start_method: str | None = None,
    timeout_s: float = WORKER_TIMEOUT_S,
) -> Iterator[Tensor]:
    """The patches of every share in order, read by as many processes; errors as `stream` raises them."""
    if num_workers == 0:
        return (dataset.read(*share) for share in shares)
    return _stream_from_workers(dataset, shares, num_workers, start_method, timeout_s)


class _Shares:
    """One rank's share of each global batch, in order, as (indices, words or None); iterable again and again."""

    def __init__(
        self,
        num_records: int,
        batch_size: int,
        seed: int,
        positions: range,
        rank: int,
        world_size: int,
        augment: bool,
    ) -> None:
        self.num_records, self.batch_size, self.seed, self.positions = num_records, batch_size, seed, positions
        self.augment = augment
        self.share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Share]:
        for position in self.positions:
            indices = batch_indices(self.num_records, self.batch_size, self.seed, position)[self.share].tolist()
            words = (
                sample_orientations(self.batch_size, self.seed, position)[self.share].tolist() if self.augment else None
            )
            yield indices, words


class _BatchReader(Dataset):
    """A whole batch per item. Our own errors come back as values: DataLoader would bury them in a traceback's text."""

    def __init__(self, dataset: PatchDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, share: Share) -> Tensor | VesselganError:
        try:
            return self.dataset.read(*share)
        except VesselganError as error:
            return error


def _stream_from_workers(
    dataset: PatchDataset, shares: Shares, num_workers: int, start_method: str | None, timeout_s: float
) -> Iterator[Tensor]:
    loader = DataLoader(
        _BatchReader(dataset),
        batch_size=None,
        sampler=shares,
        num_workers=num_workers,
        # A GPU copies from such memory while it computes.
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_it_is,
        timeout=min(_POLL_S, timeout_s),
        multiprocessing_context=start_method,
        generator=torch.Generator(),  # else it would draw from the global one, and a resumed run would differ
    )
    batches, workers = _start(loader)
    try:
        for indices, _ in shares:
            batch = _wait(batches, workers, indices, dataset, timeout_s)
            if isinstance(batch, VesselganError):
                raise batch
            yield batch
    finally:
        # A stopped or stuck process ignores SIGTERM, and Python would wait for it for ever when it exits.
        for worker in workers:
            worker.kill()


def _start(loader: DataLoader) -> tuple[Iterator, list[BaseProcess]]:
    """Start the workers. Their death must surface in `_wait`, not, by DataLoader's signal handler, anywhere at all."""
    before, is_main_thread = multiprocessing.active_children(), threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if is_main_thread and handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return batches, [child for child in multiprocessing.active_children() if child not in before]


def _wait(
    batches: Iterator, workers: list[BaseProcess], indices: list[int], dataset: PatchDataset, timeout_s: float
) -> Tensor | VesselganError:
    """The next batch; ResourceError when a worker is gone or silent, whatever DataLoader has to say about it."""
    begin = time.monotonic()
    while True:
        try:
            return next(batches)
        except RuntimeError as error:
            remedy = f"while reading {', '.join(dataset.shards_of(indices))}; start again, or with train.num_workers=0"
            if dead := [worker for worker in workers if worker.exitcode]:
                raise ResourceError(
                    f"data worker {dead[0].pid} {_cause_of_death(dead[0].exitcode)} {remedy}"
                ) from error
            if time.monotonic() - begin >= timeout_s:
                pids = ", ".join(str(worker.pid) for worker in workers)
                raise ResourceError(
                    f"no batch for {timeout_s:g} s from the data workers {pids} {remedy}; is the file system stuck?"
                ) from error
            if "timed out" not in str(error):
                raise


def _cause_of_death(exitcode: int) -> str:
    if exitcode > 0:
        return f"exited with code {exitcode}"
    return f"was killed by {signal.Signals(-exitcode).name}{_WHY_KILLED.get(-exitcode, '')}"


def _as_it_is(item: Tensor | VesselganError) -> Tensor | VesselganError:
    return item


def _common_patch_shape(shard_sets: list[ShardSet]) -> tuple[int, int, int]:
    assert shard_sets
    first = shard_sets[0]
    for other in shard_sets[1:]:
        if other.patch_shape != first.patch_shape:
            raise DataError(
                f"{first.folder} has patches of {list(first.patch_shape)} voxels, {other.folder} of "
                f"{list(other.patch_shape)}; mix sets of one patch shape"
            )
    return first.patch_shape
