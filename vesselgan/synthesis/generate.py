"""Samples a trained GAN: from its run directory to synthetic shards, and NIfTI pairs on request."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vesselgan.config.schema import Generate
from vesselgan.core.atomic_io import PARTIAL, sha256_of, write_text
from vesselgan.core.console import counted, log
from vesselgan.core.errors import DataError, ResourceError, UsageError, check_readable
from vesselgan.core.names import path_in
from vesselgan.formats.nifti import SYNTHETIC
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shard_file import ShardFile
from vesselgan.formats.shards import (
    MANIFEST,
    PROCEDURAL_TREES,
    Record,
    ShardInfo,
    ShardSet,
    write_manifest,
    write_shard,
)
from vesselgan.formats.synthetic_volumes import LABEL_THRESHOLD, SETTINGS
from vesselgan.formats.volumes import is_written, write_volume
from vesselgan.models.generator import sample_seed
from vesselgan.runtime.distributed import choose_device
from vesselgan.synthesis.comparison import likest_threshold, log_comparison, training_set
from vesselgan.synthesis.labels import LabelPatches
from vesselgan.synthesis.sampler import TrainedGenerator, check_settings, read_generator

PAIRS_PER_SHARD = 256
NUM_PILOTS = 200
"""Samples that a label threshold is chosen from."""


def generate(config: Generate) -> ShardSet:
    """Write `config.num_patches` synthetic pairs of the run `config.run` as shards, in one process; returns them.

    Evaluates the newest complete checkpoint (or `config.checkpoint`) in float32 whatever the run's precision. A
    finished folder with these settings is left alone, an unfinished one is continued; raises UsageError for others.
    """
    counts = {"num_patches": config.num_patches, "batch_size": config.batch_size}
    trained = read_generator(config.run, config.weights, config.checkpoint)
    threshold = config.label_threshold
    if trained.has_given_labels:
        if threshold is not None:
            raise UsageError(f"label_threshold={threshold:g} would change nothing: {trained.run} is given its labels")
        threshold = LABEL_THRESHOLD
    labels = trained.label_patches(config.seed)
    check_settings(counts, config.seed, trained.label_threshold if threshold is None else threshold)
    settings = {**origin_of(trained, RunDir(config.run)), "num_patches": config.num_patches, "seed": config.seed}
    settings |= {} if labels is None else {PROCEDURAL_TREES: True}
    out = Path(config.out) if config.out is not None else RunDir(config.run).synthetic
    threshold = _threshold_of(out, settings) if threshold is None else threshold
    if threshold is not None and _is_complete(out, settings | {"threshold": threshold}):
        log.info(f"{out}: already holds these {config.num_patches} patches")
    else:
        device = choose_device(config.runtime.device, 0)
        trained.network.to(device)
        if threshold is None:
            threshold = _chosen_threshold(config, trained)
        origin = f"{trained.run}, {trained.checkpoint}, seed {config.seed}"
        shape = "x".join(map(str, trained.patch_shape))
        log.info(f"generating {counted(config.num_patches, 'patch', 'patches')} of {shape} from {origin}, on {device}")
        _write_shards(out, trained, config, settings | {"threshold": threshold}, labels)
    shards = ShardSet(out)
    log_comparison(shards, RunDir(config.run))
    if config.nifti:
        _write_nifti(shards)
    return shards


def origin_of(trained: TrainedGenerator, run: RunDir) -> dict[str, Any]:
    """The weights and settings of samples, what those learned from, and what they spent of their patients' privacy."""
    names = {"run": trained.run, "checkpoint": trained.checkpoint, "weights": trained.weights}
    sources = {"trained_on": run.trained_on(), "learned_from": sorted(run.learned_from())}
    privacy = {"privacy": trained.state["privacy"]} if "privacy" in trained.state else {}
    return {**names, "weights_sha256": trained.weights_sha256, "sampling": trained.sampling, **sources, **privacy}


def _threshold_of(out: Path, settings: dict[str, Any]) -> float | None:
    """The label threshold of samples of these settings that were begun in `out`; UsageError as `is_begun`."""
    threshold = json.loads((out / SETTINGS).read_text()).get("threshold") if is_begun(out, settings) else None
    return threshold if isinstance(threshold, float) else None


def _chosen_threshold(config: Generate, trained: TrainedGenerator) -> float:
    """Of the first samples, whose labels are most like the training labels; the variant's where that cannot be said.

    That is so where the training set cannot be read, and where a budget protects it: the choice reads the patients'
    labels.
    """
    indices = range(min(config.num_patches, NUM_PILOTS))
    pilots = trained.records(indices, config.seed, trained.label_threshold, config.batch_size, None)
    scores = (record.score_XYZ for record in pilots if record.score_XYZ is not None)
    threshold = None
    try:
        training = training_set(RunDir(config.run)) if "privacy" not in trained.state else None
        if training is not None:
            threshold = likest_threshold(scores, training)
    except (DataError, ResourceError) as error:
        log.info(f"label threshold {trained.label_threshold:g}, the variant's: {error}")
    if threshold is None:
        return trained.label_threshold
    log.info(f"label threshold {threshold:g}: the labels of {counted(len(indices), 'sample')} are most like real ones")
    return threshold


def is_begun(out: Path, settings: dict[str, Any]) -> bool:
    """Whether samples of these settings were begun in `out`; raises UsageError if it holds something else."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if existing != out and not existing.is_dir():
        raise UsageError(f"{out}: cannot be made, {existing} is a file; choose another folder with out=")
    # A start that was killed leaves the beginnings of a file.
    if existing != out or (out.is_dir() and all(path.suffix == PARTIAL for path in out.iterdir())):
        return False
    try:
        stored = {**json.loads((out / SETTINGS).read_text())}
    except (OSError, ValueError, TypeError) as error:
        check_readable(out / SETTINGS, error)
        raise UsageError(
            f"{out}: is not empty and has no readable {SETTINGS}, so it was not made by generate or is damaged; choose "
            "another folder with out=, or delete this one"
        ) from error
    differing = [f"{key}: {stored.get(key)} -> {settings[key]}" for key in settings if stored.get(key) != settings[key]]
    if differing:
        raise UsageError(
            f"{out}: holds samples with other settings ({'; '.join(differing)}); choose another folder with out=, "
            "or delete this one"
        )
    return True


def _is_complete(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` holds all of these samples."""
    if not is_begun(out, settings) or not (out / MANIFEST).is_file():
        return False
    ShardSet(out)
    return True


def _write_shards(
    out: Path, trained: TrainedGenerator, config: Generate, settings: dict[str, Any], labels: LabelPatches | None
) -> None:
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / SETTINGS, json.dumps(settings, indent=1) + "\n")
    patch_shape, geometry = trained.patch_shape, trained.state["manifest"]
    shards = []
    with tqdm(total=config.num_patches, unit="patch", disable=None) as bar:
        for first in range(0, config.num_patches, PAIRS_PER_SHARD):
            indices = range(first, min(first + PAIRS_PER_SHARD, config.num_patches))
            path = out / f"synthetic_{first // PAIRS_PER_SHARD:05d}.h5"
            info = _existing_shard(path, len(indices), patch_shape)
            if info is None:
                records = trained.records(indices, config.seed, settings["threshold"], config.batch_size, labels)
                info = write_shard(path, _counted(records, bar), patch_shape=patch_shape, origin="synthetic")
            else:
                bar.update(len(indices))
            shards.append(info)
    spacing_mm = tuple(geometry["spacing_mm"])
    grid = {"spacing_mm": spacing_mm, "affine": canonical_affine(patch_shape, spacing_mm).tolist()}
    write_manifest(
        out,
        shards=shards,
        patch_shape=patch_shape,
        origin="synthetic",
        subjects={f"synthetic-{sample_seed(config.seed, i)}": grid for i in range(config.num_patches)},
        spacing_mm=spacing_mm,
        percentiles=geometry["percentiles"],
        extra=settings,
    )
    seconds = time.perf_counter() - started
    log.info(
        f"{out}: {counted(config.num_patches, 'patch', 'patches')} in {counted(len(shards), 'shard')}, {seconds:.1f} s"
    )


def canonical_affine(patch_shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """Along the axes, the origin at the patch's centre: a synthetic patch has no subject's position."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -np.asarray(spacing_mm) * (np.asarray(patch_shape) - 1) / 2
    return affine


def _counted(records: Iterator[Record], bar: tqdm) -> Iterator[Record]:
    for record in records:
        yield record
        bar.update()


def _existing_shard(path: Path, count: int, patch_shape: tuple[int, int, int]) -> ShardInfo | None:
    """A complete shard of an interrupted run, whose every patch can be read, or None."""
    if not path.is_file():
        return None
    try:
        shard = ShardFile(path, count=count, patch_shape=patch_shape, origin="synthetic")
        try:
            shard.check_voxels()
        finally:
            shard.close()
    except DataError:
        return None
    return ShardInfo(path.name, count, path.stat().st_size, sha256_of(path))


def _write_nifti(shards: ShardSet) -> None:
    """nifti/<subject>/{image,vessel}.nii.gz for every record, on the canonical grid; whole files are kept."""
    out = shards.folder / "nifti"
    for record in tqdm(shards, unit="NIfTI pair", disable=None):
        folder = path_in(out, record.subject)
        affine = np.array(shards.subjects[record.subject]["affine"])
        for name, array in (("image", record.image_XYZ), ("vessel", record.label_XYZ)):
            path = folder / f"{name}.nii.gz"
            if not is_written(path, array, affine, SYNTHETIC):
                write_volume(path, array, affine, SYNTHETIC)
    shards.close()
    log.info(f"{out}: {counted(len(shards), 'pair')} of image and label")
