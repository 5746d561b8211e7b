"""Whole labelled heads as a cohort: the vessel tree from a procedure, the image from a flow that is given it.

The tree is nobody's (vesselgan.anatomy); the image's network has seen patients' patches.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vesselgan.anatomy.head import Head, check_grid, synthetic_head
from vesselgan.anatomy.tissue import OUTSIDE
from vesselgan.config.schema import Generate
from vesselgan.core import memory
from vesselgan.core.atomic_io import write_text
from vesselgan.core.console import counted, log
from vesselgan.core.errors import NumericError, ResourceError, UsageError
from vesselgan.data.patches import HALF_RANGE
from vesselgan.formats.nifti import MAX_VOXELS, SYNTHETIC
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.synthetic_volumes import KINDS, SETTINGS, SyntheticVolumes
from vesselgan.formats.volumes import write_volume
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.generator import sample_seed
from vesselgan.runtime import distributed
from vesselgan.synthesis.generate import canonical_affine, is_begun, origin_of
from vesselgan.synthesis.sampler import TrainedGenerator, check_settings, read_generator
from vesselgan.synthesis.volume_comparison import compare_with_training
from vesselgan.synthesis.windows import Windows, make_image

_NOISE_STREAM = 0xA0
_BYTES_PER_VOXEL = 50
"""Of a head while its image is made: about ten float32 volumes, the label, the tissue map and their drawing."""


def generate_volumes(config: Generate) -> Path:
    """Write `config.volumes` heads of the run `config.run` as a cohort, the ranks dividing them; returns its folder.

    A head is a function of the weights, the seed, its number and the grid. Heads that are there are kept, so the same
    command resumes, and more of them may be asked for. Raises UsageError for a run that makes no heads, a grid that
    holds none, and a folder that holds something else.
    """
    assert config.volumes is not None
    trained = read_generator(config.run, config.weights, config.checkpoint)
    check_settings({"volumes": config.volumes, "batch_size": config.batch_size}, config.seed, trained.label_threshold)
    spacing_mm = [float(mm) for mm in config.spacing_mm or trained.state["manifest"]["spacing_mm"]]
    network = _check_heads(trained, config.shape, spacing_mm)
    run = RunDir(config.run)
    settings = {**origin_of(trained, run), "seed": config.seed, "shape": list(config.shape), "spacing_mm": spacing_mm}
    settings["noise"] = list(config.noise) if any(config.noise) else None
    volumes = SyntheticVolumes(config.out if config.out is not None else run.synthetic_volumes)
    out = volumes.folder
    subjects = {f"synthetic-{seed}": seed for seed in (sample_seed(config.seed, i) for i in range(config.volumes))}
    world = distributed.join_ranks(config.runtime.device)
    try:
        if not distributed.run_on_rank0(world, lambda: is_begun(out, settings)) and world.is_main:
            write_text(out / SETTINGS, json.dumps(settings, indent=1) + "\n")
        distributed.barrier()
        network.to(world.device)
        missing = {name: seed for name, seed in subjects.items() if not volumes.is_complete(name)}
        ranks = f" on {world.size} ranks" if world.size > 1 else ""
        log.info(f"{out}: making {counted(len(missing), 'head')} of {'x'.join(map(str, config.shape))}{ranks}")
        distributed.barrier()  # every rank has listed what is missing
        started = time.perf_counter()
        own = dict(list(missing.items())[world.rank :: world.size])
        _write_heads(network, own, config, spacing_mm, volumes, show_progress=world.is_main and sys.stderr.isatty())
        distributed.barrier()
        log.info(f"{out}: {counted(len(subjects), 'head')}, {time.perf_counter() - started:.1f} s")
        if world.is_main:
            windows = Windows(_three(config.shape), network.patch_shape)
            compare_with_training(volumes, list(subjects), windows, run)
    finally:
        distributed.stop()
    return out


def _check_heads(trained: TrainedGenerator, shape: Sequence[int], spacing_mm: Sequence[float]) -> FlowGenerator:
    """The network. Raises UsageError if it makes no heads on this grid."""
    network = trained.network
    if not isinstance(network, FlowGenerator) or not network.num_given or not network.has_position:
        raise UsageError(
            f"run={trained.run}: whole heads need a network that is given the label and knows the place: train "
            "one with variant=flow_label or gan_label"
        )
    check_grid(shape, spacing_mm)
    if any(side < patch for side, patch in zip(shape, network.patch_shape, strict=True)):
        raise UsageError(f"shape={list(shape)}: smaller than the training patches, {list(network.patch_shape)}")
    _check_size(shape)
    learned = [float(mm) for mm in trained.state["manifest"]["spacing_mm"]]
    if not np.allclose(spacing_mm, learned, rtol=0.25):
        log.warning(
            f"spacing_mm={list(spacing_mm)}: the network learned from {[round(mm, 4) for mm in learned]}; tissue will "
            "look too coarse or too fine"
        )
    return network


def _check_size(shape: Sequence[int]) -> None:
    """UsageError for a head that no reader takes, ResourceError for one that does not fit into memory."""
    if math.prod(shape) > MAX_VOXELS:
        raise UsageError(f"shape={list(shape)}: more than {MAX_VOXELS} voxels, which no volume has; give fewer")
    needed, free = _BYTES_PER_VOXEL * math.prod(shape), memory.available_bytes()
    if needed > free:
        raise ResourceError(
            f"shape={list(shape)}: a head needs {memory.format_bytes(needed)} of memory, {memory.format_bytes(free)} "
            "are available; ask for more memory, or make smaller heads"
        )


def _write_heads(
    network: FlowGenerator,
    subjects: dict[str, int],
    config: Generate,
    spacing_mm: Sequence[float],
    volumes: SyntheticVolumes,
    *,
    show_progress: bool,
) -> None:
    shape = _three(config.shape)
    affine = canonical_affine(shape, spacing_mm)
    total = len(subjects) * network.sampling.num_steps * len(Windows(shape, network.patch_shape).corners)
    with tqdm(total=total, unit="window", disable=not show_progress) as bar:
        for subject, seed in subjects.items():
            head = synthetic_head(seed, shape, spacing_mm)
            given_GXYZ = head.channels(network.num_given)
            image_XYZ = make_image(network, given_GXYZ, seed=seed, batch_size=config.batch_size, advance=bar.update)
            if not np.isfinite(image_XYZ).all():
                raise NumericError(
                    f"{subject}: not finite; the run diverged, choose an earlier one with checkpoint=NAME"
                )
            image_XYZ = with_noise((image_XYZ + np.float32(1)) * np.float32(HALF_RANGE), head, config.noise, seed)
            for kind, array in zip(KINDS, (head.label_XYZ, head.mask_XYZ, image_XYZ), strict=True):
                write_volume(volumes.path(kind, subject), array, affine, SYNTHETIC)


def with_noise(image_XYZ: np.ndarray, head: Head, noise: Sequence[float], seed: int) -> np.ndarray:
    """Gaussian noise inside the head, its standard deviation drawn evenly from the range `noise`; none below 0."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, _NOISE_STREAM)))
    low, high = noise
    sd = rng.uniform(low, high)
    noisy_XYZ = image_XYZ + np.float32(sd) * rng.standard_normal(image_XYZ.shape, np.float32)
    return np.where((head.tissue_XYZ == OUTSIDE) | (sd == 0), image_XYZ, np.maximum(noisy_XYZ, np.float32(0)))


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = sizes
    return x, y, z
