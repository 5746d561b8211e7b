"""A run's generator as a sampler: from a run directory to pairs of image and label.

Shapes: N batch, L latent, C channel (0 image, 1 vessel label), X Y Z voxels.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from vesselgan.config.schema import Variant
from vesselgan.core.errors import CheckpointError, NumericError, UsageError
from vesselgan.data.patches import HALF_RANGE
from vesselgan.formats.intensities import from_stored, to_stored
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import Record
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.generator import Generator, latents, sample_seed
from vesselgan.models.variants import build_generator
from vesselgan.runtime.distributed import choose_device
from vesselgan.runtime.generator_weights import read_generator_weights
from vesselgan.synthesis.labels import LabelPatches

Argument = TypeVar("Argument")
Result = TypeVar("Result")
BATCH_SIZE = 8
"""As in configs/generate.yaml."""
SMALL_BATCH, MAX_WORKERS = 2**20, 8
"""Voxels up to which threads of a CPU take a batch each: several at one so small wait longer than they compute."""


@dataclass(frozen=True)
class TrainedGenerator:
    """The generator of a run, in evaluation mode and float32.

    A sample is a function of the weights, the seed and its number; the batch size changes last bits, because it selects
    kernels.
    """

    network: Generator | FlowGenerator = field(repr=False)
    run: str
    """The run directory's name."""
    checkpoint: str
    weights: str
    weights_sha256: str
    label_threshold: float
    """The variant's: score from which a voxel is vessel."""
    state: dict[str, Any] = field(repr=False)
    """The checkpoint's; `manifest` holds the geometry of the training patches."""

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        x, y, z = self.state["manifest"]["patch_shape"]
        return x, y, z

    @property
    def sampling(self) -> dict[str, Any] | None:
        """The settings of a flow's integration, which the weights do not hold."""
        return asdict(self.network.sampling) if isinstance(self.network, FlowGenerator) else None

    @property
    def has_given_labels(self) -> bool:
        """Whether the image alone is made."""
        return isinstance(self.network, FlowGenerator) and self.network.num_given > 0

    def sample(
        self, n: int, seed: int, *, label_threshold: float | None = None, batch_size: int = BATCH_SIZE
    ) -> list[Record]:
        """The first `n` pairs of a seed, equal to what `vesselgan generate` writes with this label threshold.

        label_threshold: None takes the variant's. Raises UsageError for a number out of its range, NumericError for a
        generator that diverged.
        """
        batches = self.sample_batches(n, seed, label_threshold=label_threshold, batch_size=batch_size)
        return [record for batch in batches for record in batch]

    def sample_batches(
        self, n: int, seed: int, *, label_threshold: float | None = None, batch_size: int = BATCH_SIZE
    ) -> Iterator[list[Record]]:
        """The pairs of `sample` in lists of at most `batch_size`, one after the other."""
        threshold = self.label_threshold if label_threshold is None else label_threshold
        check_settings({"n": n, "batch_size": batch_size}, seed, threshold)
        labels = self.label_patches(seed)
        return (
            [
                replace(record, image_XYZ=from_stored(to_stored(record.image_XYZ)))
                for record in self.records(
                    range(first, min(first + batch_size, n)), seed, threshold, batch_size, labels
                )
            ]
            for first in range(0, n, batch_size)
        )

    def label_patches(self, seed: int) -> LabelPatches | None:
        """For a network that is given labels; None for one that makes its own. UsageError: see LabelPatches."""
        if not self.has_given_labels:
            return None
        assert isinstance(self.network, FlowGenerator)
        return LabelPatches(self.network, self.state["manifest"]["spacing_mm"], seed)

    def records(
        self, indices: Sequence[int], seed: int, label_threshold: float, batch_size: int, labels: LabelPatches | None
    ) -> Iterator[Record]:
        """The samples of these numbers, before their images are stored as integers; labels: `label_patches(seed)`."""
        for index, patch_CXYZ in sample_patches(self.network, seed, indices, batch_size, labels):
            yield make_record(patch_CXYZ, seed=sample_seed(seed, index), threshold=label_threshold)


def load_generator(
    run: str | Path, weights: str | None = None, *, checkpoint: str | None = None, device: str = "auto"
) -> TrainedGenerator:
    """The generator of a run directory, of its newest complete checkpoint or of `checkpoint`.

    weights: `standing`, the last ones with re-estimated statistics of BatchNorm; `running`, with those of training;
    `ema`, their moving average; None: `ema` where the variant keeps one, else `standing`. device: `auto`, `cpu` or
    `cuda`.
    Raises UsageError for a folder that is no run of a GAN, CheckpointError for weights that are missing or damaged.
    """
    trained = read_generator(run, weights, checkpoint)
    trained.network.to(choose_device(device, 0))
    return trained


def read_generator(run: str | Path, weights: str | None, checkpoint: str | None) -> TrainedGenerator:
    """As `load_generator`, on the CPU."""
    run_dir = RunDir(run)
    variant: Variant = run_dir.config("train_gan").variant
    read = read_generator_weights(run_dir.path, variant, weights, checkpoint)
    with torch.device("meta"):
        network = build_generator(variant, read.state["manifest"]["patch_shape"])
    try:
        network.load_state_dict(read.tensors, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{run}: the generator's weights and the run's settings disagree: {reason}") from error
    return TrainedGenerator(
        network.eval(), run_dir.name, read.checkpoint, read.name, read.sha256, variant.label_threshold, read.state
    )


def check_settings(counts: dict[str, int], seed: int, label_threshold: float) -> None:
    """Raises UsageError for a number out of its range."""
    for key, value in counts.items():
        if value < 1:
            raise UsageError(f"{key}={value}: must be 1 or more")
    if seed < 0:
        raise UsageError(f"seed={seed}: must be 0 or more")
    if not 0 < label_threshold <= 1:
        raise UsageError(f"label_threshold={label_threshold}: must lie above 0, at most 1; the paper's is 0.3")


def sample_patches(
    generator: Generator | FlowGenerator,
    seed: int,
    indices: Sequence[int],
    batch_size: int,
    labels: LabelPatches | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, patch float32 [2, X, Y, Z] in [-1, 1]); the generator must be in evaluation mode.

    The last batch is padded by repetition: kernels are selected by batch size, so a sample's bits do not depend on the
    number of samples. labels: for a network that is given them.
    """
    if generator.training:
        raise UsageError("the generator is in training mode, where a sample depends on its batch; call eval() first")
    device = next(generator.parameters()).device
    batches = [list(indices[first : first + batch_size]) for first in range(0, len(indices), batch_size)]

    def sample(batch: list[int]) -> np.ndarray:
        padded = batch + [batch[-1]] * (batch_size - len(batch))
        given = [] if labels is None else [value for value in labels.batch(padded) if value is not None]
        with torch.inference_mode():
            z_NL = latents(seed, padded, generator.latent_size).to(device)
            return generator(z_NL, *(value.to(device) for value in given)).float().cpu().numpy()

    workers = num_workers(batch_size * math.prod(generator.patch_shape), device)
    for batch, patches_NCXYZ in zip(batches, in_order(sample, batches, workers), strict=True):
        yield from zip(batch, patches_NCXYZ, strict=False)


def num_workers(batch_voxels: int, device: torch.device) -> int:
    """Threads that take a batch each."""
    is_small = device.type == "cpu" and batch_voxels <= SMALL_BATCH
    return min(torch.get_num_threads(), MAX_WORKERS) if is_small else 1


def in_order(
    function: Callable[[Argument], Result], arguments: Sequence[Argument], num_workers: int
) -> Iterator[Result]:
    """The results in order, at most `num_workers` ahead; each worker computes on one thread."""
    if num_workers == 1:
        yield from map(function, arguments)
        return
    with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending: deque[Future[Result]] = deque()
        for argument in arguments:
            pending.append(pool.submit(function, argument))
            if len(pending) > num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def make_record(patch_CXYZ: np.ndarray, *, seed: int, threshold: float) -> Record:
    """A generated patch as a record: image from [-1, 1] to [0, 255], score clipped to [0, 1], label score >= threshold.

    seed: the sample's own (`sample_seed`). The score is rounded to half first, so that a reader who thresholds the
    stored score gets the stored label. Raises NumericError if the patch is not finite.
    """
    if not np.isfinite(patch_CXYZ).all():
        raise NumericError(f"sample {seed}: not finite; the run diverged, choose an earlier one with checkpoint=NAME")
    image_XYZ = np.clip((patch_CXYZ[0] + np.float32(1)) * np.float32(HALF_RANGE), 0, 255).astype(np.float32)
    score_XYZ = np.clip(patch_CXYZ[1], 0, 1).astype(np.float16)
    return Record(
        image_XYZ=image_XYZ,
        label_XYZ=(score_XYZ.astype(np.float32) >= threshold).astype(np.uint8),
        subject=f"synthetic-{seed}",
        corner=(0, 0, 0),
        kind="synthetic",
        limits=(0.0, 255.0),
        num_clipped=0,
        score_XYZ=score_XYZ,
    )
