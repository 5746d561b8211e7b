"""Samples a trained GAN: from its run directory to synthetic shards, and NIfTI pairs on request.

Shapes: N batch, L latent, C channel (0 image, 1 vessel label), X Y Z voxels.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vesselgan.config.schema import Generate, Variant
from vesselgan.core.atomic_io import sha256_of, write_text
from vesselgan.core.errors import CheckpointError, DataError, NumericError, UsageError
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shard_file import ShardFile
from vesselgan.formats.shards import MANIFEST, Record, ShardInfo, ShardSet, write_manifest, write_shard
from vesselgan.formats.volumes import write_volume
from vesselgan.models.generator import Generator, latents, sample_seed
from vesselgan.runtime.checkpoint import read_weights
from vesselgan.runtime.distributed import choose_device

PAIRS_PER_SHARD = 256
SETTINGS = "generation.json"


def generate(config: Generate) -> None:
    """Write `config.num_patches` synthetic pairs of the run `config.run` as shards, in one process.

    Evaluates the newest complete checkpoint (or `config.checkpoint`) in float32 whatever the run's precision. A sample
    is a function of the weights, the seed and its index; the batch size changes last bits, because it selects kernels.
    A finished folder with these settings is left alone, an unfinished one is continued; raises UsageError for others.
    """
    _check_settings(config)
    run = RunDir(config.run)
    run_dir, train_config = run.path, run.config("train_gan")
    weights, state = _read_weights(run_dir, config)
    geometry = state["manifest"]
    x, y, z = geometry["patch_shape"]
    settings = {
        "run": run_dir.resolve().name,
        "checkpoint": config.checkpoint or f"step_{state['step']:08d}",
        "weights_sha256": _digest(weights),
        "num_patches": config.num_patches,
        "weights": config.weights,
        "seed": config.seed,
        "threshold": config.label_threshold,
    }
    if "privacy" in state:
        settings["privacy"] = state["privacy"]
    out = Path(config.out) if config.out is not None else run_dir / "synthetic"
    if _is_complete(out, settings):
        print(f"{out}: already holds these {config.num_patches} patches", flush=True)
    else:
        device = choose_device(config.runtime.device, 0)
        generator = _load_generator(weights, (x, y, z), train_config.variant).to(device)
        origin = f"{settings['run']}, {settings['checkpoint']}, seed {config.seed}"
        print(f"generating {config.num_patches} patches of {x}x{y}x{z} from {origin}, on {device}", flush=True)
        _write_shards(out, generator, config, settings, geometry)
    if config.nifti:
        _write_nifti(out, config.label_threshold)


def _read_weights(run_dir: Path, config: Generate) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the weights and BatchNorm statistics that `config.weights` selects, the run's state)."""
    if config.weights == "ema":
        return read_weights(run_dir, "generator_ema", config.checkpoint)
    weights, state = read_weights(run_dir, "generator", config.checkpoint)
    if config.weights == "standing":
        weights |= read_weights(run_dir, "generator_standing", config.checkpoint)[0]
    return weights, state


def sample_patches(
    generator: Generator, seed: int, indices: Sequence[int], batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, patch float32 [2, X, Y, Z] in [-1, 1]); the generator must be in evaluation mode.

    The last batch is padded by repetition: kernels are selected by batch size, so a sample's bits do not depend on the
    number of samples.
    """
    assert not generator.training, "in training mode a sample depends on its batch"
    device = next(generator.parameters()).device
    for first in range(0, len(indices), batch_size):
        batch = list(indices[first : first + batch_size])
        padded = batch + [batch[-1]] * (batch_size - len(batch))
        z_NL = latents(seed, padded, generator.latent_size)
        with torch.inference_mode():
            patches_NCXYZ = generator(z_NL.to(device)).float().cpu().numpy()
        yield from zip(batch, patches_NCXYZ, strict=False)


def make_record(patch_CXYZ: np.ndarray, *, seed: int, threshold: float) -> Record:
    """A generated patch as a record: image from [-1, 1] to [0, 255], score clipped to [0, 1], label score >= threshold.

    seed: the sample's own (`sample_seed`). The score is rounded to half first, so that a reader who thresholds the
    stored score gets the stored label. Raises NumericError if the patch is not finite.
    """
    if not np.isfinite(patch_CXYZ).all():
        raise NumericError(f"sample {seed}: not finite; the run diverged, choose an earlier one with checkpoint=NAME")
    image_XYZ = np.clip((patch_CXYZ[0] + np.float32(1)) * np.float32(127.5), 0, 255).astype(np.float32)
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


def _check_settings(config: Generate) -> None:
    for key in ("num_patches", "batch_size"):
        if getattr(config, key) < 1:
            raise UsageError(f"{key}={getattr(config, key)}: must be 1 or more")
    if config.seed < 0:
        raise UsageError(f"seed={config.seed}: must be 0 or more")
    if not 0 < config.label_threshold <= 1:
        raise UsageError(f"label_threshold={config.label_threshold}: must lie above 0, at most 1; the paper's is 0.3")


def _digest(weights: dict[str, Tensor]) -> str:
    """sha256 over names and values, so that an unfinished folder is not continued with other weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def _load_generator(weights: dict[str, Tensor], patch_shape: tuple[int, int, int], variant: Variant) -> Generator:
    """The generator in evaluation mode; raises CheckpointError if the weights do not fit config.yaml."""
    with torch.device("meta"):
        generator = Generator(patch_shape, variant.width, variant.latent_size, variant.generator_norm)
    try:
        generator.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the checkpoint's generator does not fit config.yaml: {reason}") from error
    return generator.eval()


def _is_complete(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` holds all of these samples; raises UsageError if it holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        stored = json.loads((out / SETTINGS).read_text())
    except (OSError, ValueError):
        raise UsageError(f"{out}: is not empty and was not made by generate; choose another folder with out=") from None
    differing = [f"{key}: {stored.get(key)} -> {settings[key]}" for key in settings if stored.get(key) != settings[key]]
    if differing:
        raise UsageError(
            f"{out}: holds patches with other settings ({'; '.join(differing)}); choose another folder with out=, "
            "or delete this one"
        )
    if not (out / MANIFEST).is_file():
        return False
    ShardSet(out)
    return True


def _write_shards(
    out: Path, generator: Generator, config: Generate, settings: dict[str, Any], geometry: dict[str, Any]
) -> None:
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / SETTINGS, json.dumps(settings, indent=1) + "\n")
    x, y, z = geometry["patch_shape"]
    patch_shape = (x, y, z)
    shards = []
    with tqdm(total=config.num_patches, unit="patch", disable=None) as bar:
        for first in range(0, config.num_patches, PAIRS_PER_SHARD):
            indices = range(first, min(first + PAIRS_PER_SHARD, config.num_patches))
            path = out / f"synthetic_{first // PAIRS_PER_SHARD:05d}.h5"
            info = _existing_shard(path, len(indices), patch_shape)
            if info is None:
                records = _records(generator, config, indices, bar)
                info = write_shard(path, records, patch_shape=patch_shape, origin="synthetic")
            else:
                bar.update(len(indices))
            shards.append(info)
    grid = {"spacing_mm": geometry["spacing_mm"], "affine": geometry["affine"]}
    write_manifest(
        out,
        shards=shards,
        patch_shape=patch_shape,
        origin="synthetic",
        subjects={f"synthetic-{sample_seed(config.seed, i)}": grid for i in range(config.num_patches)},
        spacing_mm=tuple(geometry["spacing_mm"]),
        upper_percentile=geometry["upper_percentile"],
        extra=settings | {"trained_on": RunDir(config.run).trained_on()},
    )
    seconds = time.perf_counter() - started
    print(f"{out}: {config.num_patches} patches in {len(shards)} shards, {seconds:.1f} s", flush=True)


def _records(generator: Generator, config: Generate, indices: range, bar: tqdm) -> Iterator[Record]:
    for index, patch_CXYZ in sample_patches(generator, config.seed, indices, config.batch_size):
        yield make_record(patch_CXYZ, seed=sample_seed(config.seed, index), threshold=config.label_threshold)
        bar.update()


def _existing_shard(path: Path, count: int, patch_shape: tuple[int, int, int]) -> ShardInfo | None:
    """A complete shard of an interrupted run, or None."""
    if not path.is_file():
        return None
    try:
        ShardFile(path, count=count, patch_shape=patch_shape, origin="synthetic").close()
    except DataError:
        return None
    return ShardInfo(path.name, count, path.stat().st_size, sha256_of(path))


def _write_nifti(out: Path, threshold: float) -> None:
    """nifti/<subject>/{image,vessel}.nii.gz for every record, on the cohort's grid; existing files are kept."""
    shards = ShardSet(out)
    for index in tqdm(range(len(shards)), unit="NIfTI pair", disable=None):
        record = shards[index]
        folder = out / "nifti" / record.subject
        affine = np.array(shards.subjects[record.subject]["affine"])
        for name, array in (("image", record.image_XYZ), ("vessel", shards.label(index, threshold))):
            path = folder / f"{name}.nii.gz"
            if not path.is_file():
                write_volume(path, array, affine)
    shards.close()
    print(f"{out / 'nifti'}: {len(shards)} pairs of image and label", flush=True)
