"""Segment whole volumes with a trained U-Net: NIfTI in, NIfTI out on the same grid; over as many ranks as there are."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from vesselgan.config.compose import from_yaml
from vesselgan.config.schema import Segment, TrainUnet
from vesselgan.core.atomic_io import sha256_of, write_text
from vesselgan.core.errors import CheckpointError, DataError, UsageError
from vesselgan.formats.cohort import read_cohort
from vesselgan.formats.volumes import intensity_limits, read_image, scale_to_255, write_like
from vesselgan.models.unet import Unet
from vesselgan.runtime import distributed
from vesselgan.runtime.checkpoint import read_weights
from vesselgan.runtime.distributed import World
from vesselgan.runtime.launchers import ranks_from_environment
from vesselgan.segmentation.sliding_window import probability_map

PLAYER = "unet"
RECORD = "segmentation.json"
PART = "segmentation.rank-{}.json"
PROBABILITY = "probability"
FORMAT_VERSION = 1
SUFFIXES = (".nii.gz", ".nii")
PATIENCE_MINUTES = 24 * 60.0
"""How long a rank that has done its volumes waits for the others; a launcher ends all when one dies."""


@dataclass(frozen=True)
class Settings:
    """What a folder of predictions was made with; two folders with equal settings hold equal predictions."""

    run: str
    """Name of the run directory."""
    checkpoint: str
    source: str
    """`real`, `synthetic` or `both`"""
    shuffle_labels: bool
    weights_sha256: str
    patch_shape: list[int]
    scaling: str
    upper_percentile: float
    threshold: float
    overlap: float
    batch_size: int
    min_component_voxels: int | None
    probability: bool
    unet_seed: int
    label_threshold: float
    """Of the synthetic labels that it was trained on."""
    privacy: dict[str, Any] | None
    """What was spent on the patches that it was trained on; null where they are of no private GAN."""
    learned_from: dict[str, Any] | None
    """The volumes that it may not be scored on (segmentation.training_provenance); null for a run that did not say."""


def segment(config: Segment) -> None:
    """Write OUT/<subject>.nii.gz, {0, 1} in the image's own number type, for the file, folder or split that is named.

    The image is scaled by itself as in training (percentile from the checkpoint) and predicted in float32 whatever the
    run's precision. OUT/segmentation.json says with what, and of each volume what went in and came out; a volume that
    it lists unchanged is kept, so a stopped job goes on. Ranks share the volumes. UsageError for a folder that holds
    something else.
    """
    run_dir, out = Path(config.run), Path(config.out)
    trained: TrainUnet = from_yaml("train_unet", run_dir / "config.yaml")
    settings, weights = read_run(config, trained)
    inputs, nan_value = find_inputs(config)
    if any(path.parent.resolve() == out.resolve() for path in inputs.values()):
        raise UsageError(f"out={out} is the folder of the images: name another one, inputs are never changed")
    world = join_ranks(config)
    try:
        unet = load_unet(weights, trained, run_dir).to(world.device)
        volumes = distributed.run_on_rank0(world, lambda: open_record(out, settings))
        if world.is_main:
            print(f"segmenting {len(inputs)} volumes with {settings.run}, {settings.checkpoint}, into {out}"
                  + (f", on {world.size} ranks" if world.size > 1 else ""), flush=True)  # fmt: skip
        for number, subject in list(enumerate(inputs, 1))[world.rank :: world.size]:
            head = f"[{number}/{len(inputs)}] {subject}"
            entry = _segment_one(unet, subject, inputs[subject], out, settings, volumes.get(subject), nan_value, head)
            if volumes.get(subject) != entry:
                volumes[subject] = entry
                _write_record(out / (RECORD if world.is_main else PART.format(world.rank)), settings, volumes)
        distributed.barrier()
        if world.is_main:
            _write_record(out / RECORD, settings, open_record(out, settings) | volumes)
            for part in out.glob(PART.format("*")):
                part.unlink()
    finally:
        distributed.stop()


def join_ranks(config: Segment) -> World:
    """This rank among its peers; alone it joins no process group."""
    rank, size, local_rank = ranks_from_environment(os.environ)
    if size == 1:
        return World(rank, size, local_rank, distributed.choose_device(config.runtime.device, local_rank))
    return distributed.start(config.runtime.device, timeout_minutes=PATIENCE_MINUTES)


def read_run(config: Segment, trained: TrainUnet) -> tuple[Settings, dict[str, Tensor]]:
    """What the U-Net of config.run segments with, and its weights."""
    run_dir = Path(config.run)
    name = config.checkpoint or best_checkpoint(run_dir)
    weights, state = read_weights(run_dir, PLAYER, name)
    settings = Settings(
        run=run_dir.resolve().name,
        checkpoint=name,
        source=trained.data.source,
        shuffle_labels=trained.data.shuffle_labels,
        weights_sha256=sha256_of(run_dir / "checkpoints" / name / f"{PLAYER}.safetensors"),
        patch_shape=state["patch_shape"],
        scaling=state["scaling"],
        upper_percentile=state["upper_percentile"],
        threshold=config.threshold,
        overlap=config.overlap,
        batch_size=config.batch_size,
        min_component_voxels=config.min_component_voxels,
        probability=config.probability,
        unet_seed=trained.unet.seed,
        label_threshold=trained.data.label_threshold,
        privacy=state.get("privacy"),
        learned_from=state.get("learned_from"),
    )
    return settings, weights


def _segment_one(
    unet: Unet,
    subject: str,
    image: Path,
    out: Path,
    settings: Settings,
    before: dict[str, Any] | None,
    nan_value: float | None,
    head: str,
) -> dict[str, Any]:
    """The record's entry of one volume, segmented now unless it is there already; a line about it."""
    target = out / f"{subject}.nii.gz"
    has_all = not settings.probability or (out / PROBABILITY / target.name).is_file()
    if has_all and _is_kept(before, image, target):
        print(f"{head}: done already", flush=True)
        return before
    started = time.perf_counter()
    entry = segment_volume(unet, image, target, settings, nan_value=nan_value)
    shape = " x ".join(map(str, entry["shape"]))
    removed = f", {entry['num_removed_parts']} small parts removed" if entry["num_removed_parts"] else ""
    print(f"{head}: {shape}, {entry['num_vessel_voxels']} vessel voxels{removed}, "
          f"{time.perf_counter() - started:.1f} s", flush=True)  # fmt: skip
    return entry


def segment_volume(
    unet: Unet, image: Path, target: Path, settings: Settings, *, nan_value: float | None
) -> dict[str, Any]:
    """Segment one image into the file `target`; what the record says of it."""
    volume = read_image(image, nan_value=nan_value)
    try:
        limits = intensity_limits(volume.data_XYZ, settings.upper_percentile)
    except DataError as error:
        raise DataError(f"{image}: {error}") from error
    probability_XYZ = probability_map(
        unet,
        scale_to_255(volume.data_XYZ, limits),
        patch_shape=settings.patch_shape,
        overlap=settings.overlap,
        batch_size=settings.batch_size,
        scaling=settings.scaling,
        show_progress=sys.stderr.isatty(),
    )
    label_XYZ, num_removed = without_small_parts(probability_XYZ >= settings.threshold, settings.min_component_voxels)
    if settings.probability:
        write_like(target.parent / PROBABILITY / target.name, probability_XYZ, image)
    write_like(target, label_XYZ.astype(volume.header.dtype), image)
    return {
        "shape": list(label_XYZ.shape),
        "limits": list(limits),
        "num_vessel_voxels": int(np.count_nonzero(label_XYZ)),
        "num_removed_parts": num_removed,
        "image_sha256": sha256_of(image),
        "output_sha256": sha256_of(target),
    }


def without_small_parts(label_XYZ: np.ndarray, min_voxels: int | None) -> tuple[np.ndarray, int]:
    """The label without its parts (corners connect) of fewer voxels, and how many they were; null: all stay."""
    if min_voxels is None:
        return label_XYZ, 0
    parts, num_parts = ndimage.label(label_XYZ, np.ones((3, 3, 3)))
    is_kept = np.bincount(parts.ravel(), minlength=num_parts + 1) >= min_voxels
    is_kept[0] = False
    return is_kept[parts], num_parts - int(np.count_nonzero(is_kept))


def best_checkpoint(run_dir: Path) -> str:
    """The checkpoint that did best on validation; UsageError for a run that is not finished."""
    try:
        return json.loads((run_dir / "finished.json").read_text())["best_checkpoint"]
    except FileNotFoundError:
        raise UsageError(
            f"{run_dir}: not finished, so its best checkpoint is not known; finish it with the command that "
            "started it, or name one with checkpoint=NAME"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{run_dir}/finished.json: not readable ({error}); name one: checkpoint=NAME") from error


def load_unet(weights: dict[str, Tensor], trained: TrainUnet, run_dir: Path) -> Unet:
    """The U-Net in evaluation mode, float32; CheckpointError when the weights are not this architecture's."""
    with torch.device("meta"):
        unet = Unet(trained.unet.filters, trained.unet.dropout, network=trained.unet.network)
    try:
        unet.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{run_dir}: weights and config.yaml disagree: {' '.join(str(error).split())}") from error
    return unet.eval()


def find_inputs(config: Segment) -> tuple[dict[str, Path], float | None]:
    """(subject -> image, what stands in for NaN in a cohort's images). UsageError or DataError where there is none.

    A file's subject is its name without ending.
    """
    if config.input is None:
        subjects = read_cohort(config.data.cohort_dir).of_split(config.split)
        nan_value = next(iter(subjects.values())).reading.nan_value
        return {name: subject.image for name, subject in subjects.items()}, nan_value
    source = Path(config.input)
    if not source.exists():
        raise UsageError(f"input={source}: no such file or folder")
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    found: dict[str, Path] = {}
    for path in files:
        ending = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if ending is None:
            if not source.is_dir():
                raise UsageError(f"input={source}: not a .nii or .nii.gz file")
            continue
        subject = path.name.removesuffix(ending)
        if subject in found:
            raise DataError(f"{found[subject]} and {path} would both become {subject}.nii.gz; rename one of them")
        found[subject] = path
    if not found:
        raise DataError(f"input={source}: holds no .nii or .nii.gz file (folders below it are not searched)")
    return found, None


def open_record(out: Path, settings: Settings) -> dict[str, Any]:
    """What `out` holds already, by subject; UsageError unless it is new, empty or made with the same settings.

    Ranks that were stopped left parts of the record beside it.
    """
    path = out / RECORD
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"out={out}: is not empty and was not made by segment; name another folder")
        _write_record(path, settings, {})
    volumes: dict[str, Any] = {}
    for part in [path, *sorted(out.glob(PART.format("*")))]:
        try:
            content = json.loads(part.read_text())
            stored, held = content["settings"], content["volumes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{part}: not readable ({error}); remove the folder or name another one") from error
        now = asdict(settings)
        differing = [f"{key}: {stored.get(key)} -> {now[key]}" for key in now if stored.get(key) != now[key]]
        if differing:
            raise UsageError(f"out={out}: was made with other settings ({'; '.join(differing)}); name another folder")
        volumes |= held
    return volumes


def _write_record(path: Path, settings: Settings, volumes: dict[str, Any]) -> None:
    content = {"format_version": FORMAT_VERSION, "settings": asdict(settings), "volumes": volumes}
    write_text(path, json.dumps(content, indent=1) + "\n")


def _is_kept(entry: dict[str, Any] | None, image: Path, target: Path) -> bool:
    """Whether the record's output is there, unchanged, and of this very image."""
    if entry is None or not target.is_file():
        return False
    return entry["output_sha256"] == sha256_of(target) and entry["image_sha256"] == sha256_of(image)
