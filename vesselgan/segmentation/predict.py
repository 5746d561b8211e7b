"""Segments whole volumes with a trained U-Net, on any number of ranks: NIfTI in, NIfTI out on the same grid."""

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
from vesselgan.formats.intensities import intensity_limits, scale_to_255
from vesselgan.formats.volumes import read_image, write_like
from vesselgan.models.unet import Unet
from vesselgan.runtime import distributed
from vesselgan.runtime.checkpoint import read_weights
from vesselgan.runtime.distributed import World
from vesselgan.runtime.launchers import ranks_from_environment
from vesselgan.segmentation.sliding_window import probability_map

NETWORK = "unet"
RECORD = "segmentation.json"
RANK_RECORD = "segmentation.rank-{}.json"
PROBABILITY = "probability"
FORMAT_VERSION = 1
SUFFIXES = (".nii.gz", ".nii")
BARRIER_MINUTES = 24 * 60.0
"""Timeout of a rank that has done its volumes and waits for the others; a launcher ends all when one dies."""


@dataclass(frozen=True)
class Settings:
    """The settings of a folder of predictions; folders with equal settings hold equal predictions."""

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
    """Of the synthetic training labels."""
    privacy: dict[str, Any] | None
    """The budget spent on the training patches; null unless a private GAN made them."""
    learned_from: dict[str, Any] | None
    """The volumes that it may not be scored on (segmentation.training_provenance); null if unknown."""


def segment(config: Segment) -> None:
    """Write OUT/<subject>.nii.gz, {0, 1} in the image's own number type, for a file, a folder or a cohort's split.

    Each image is scaled as in training (percentile from the checkpoint) and predicted in float32 whatever the run's
    precision. OUT/segmentation.json holds the settings and each volume's checksums; a volume that it lists unchanged
    is kept, so a stopped job resumes. Ranks divide the volumes. Raises UsageError if OUT holds something else.
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
            target, head = out / f"{subject}.nii.gz", f"[{number}/{len(inputs)}] {subject}"
            if _is_up_to_date(volumes.get(subject), inputs[subject], target, settings):
                print(f"{head}: done already", flush=True)
                continue
            started = time.perf_counter()
            volumes[subject] = segment_volume(unet, inputs[subject], target, settings, nan_value=nan_value)
            print(f"{head}: {_in_words(volumes[subject])}, {time.perf_counter() - started:.1f} s", flush=True)
            _write_record(out / (RECORD if world.is_main else RANK_RECORD.format(world.rank)), settings, volumes)
        distributed.barrier()
        if world.is_main:
            _write_record(out / RECORD, settings, open_record(out, settings) | volumes)
            for path in out.glob(RANK_RECORD.format("*")):
                path.unlink()
    finally:
        distributed.stop()


def join_ranks(config: Segment) -> World:
    """Start the process group; a single rank needs none."""
    rank, size, local_rank = ranks_from_environment(os.environ)
    if size == 1:
        return World(rank, size, local_rank, distributed.choose_device(config.runtime.device, local_rank))
    return distributed.start(config.runtime.device, timeout_minutes=BARRIER_MINUTES)


def read_run(config: Segment, trained: TrainUnet) -> tuple[Settings, dict[str, Tensor]]:
    """The settings and the weights of the U-Net of config.run."""
    run_dir = Path(config.run)
    name = config.checkpoint or best_checkpoint(run_dir)
    weights, state = read_weights(run_dir, NETWORK, name)
    settings = Settings(
        run=run_dir.resolve().name,
        checkpoint=name,
        source=trained.data.source,
        shuffle_labels=trained.data.shuffle_labels,
        weights_sha256=sha256_of(run_dir / "checkpoints" / name / f"{NETWORK}.safetensors"),
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


def segment_volume(
    unet: Unet, image: Path, target: Path, settings: Settings, *, nan_value: float | None
) -> dict[str, Any]:
    """Segment one image into the file `target`; returns its entry in the record."""
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
    label_XYZ, num_removed = remove_small_components(
        probability_XYZ >= settings.threshold, settings.min_component_voxels
    )
    if settings.probability:
        write_like(target.parent / PROBABILITY / target.name, probability_XYZ, image)
    write_like(target, label_XYZ.astype(volume.header.dtype), image)
    return {
        "shape": list(label_XYZ.shape),
        "limits": list(limits),
        "num_vessel_voxels": int(np.count_nonzero(label_XYZ)),
        "num_removed_components": num_removed,
        "image_sha256": sha256_of(image),
        "output_sha256": sha256_of(target),
    }


def _in_words(entry: dict[str, Any]) -> str:
    removed = entry["num_removed_components"]
    shape = " x ".join(map(str, entry["shape"]))
    components = f", {removed} small components removed" if removed else ""
    return f"{shape}, {entry['num_vessel_voxels']} vessel voxels{components}"


def remove_small_components(label_XYZ: np.ndarray, min_voxels: int | None) -> tuple[np.ndarray, int]:
    """(the label without components of fewer voxels, their number); 26-connected, null keeps all."""
    if min_voxels is None:
        return label_XYZ, 0
    components, num_components = ndimage.label(label_XYZ, np.ones((3, 3, 3)))
    is_kept = np.bincount(components.ravel(), minlength=num_components + 1) >= min_voxels
    is_kept[0] = False
    return is_kept[components], num_components - int(np.count_nonzero(is_kept))


def best_checkpoint(run_dir: Path) -> str:
    """The checkpoint that is best on validation; raises UsageError if the run is not finished."""
    try:
        return json.loads((run_dir / "finished.json").read_text())["best_checkpoint"]
    except FileNotFoundError:
        raise UsageError(
            f"{run_dir}: not finished, so its best checkpoint is not known; finish it with the command that "
            "started it, or set checkpoint=NAME"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{run_dir}/finished.json: not readable ({error}); set checkpoint=NAME") from error


def load_unet(weights: dict[str, Tensor], trained: TrainUnet, run_dir: Path) -> Unet:
    """The U-Net in evaluation mode, float32; raises CheckpointError if the weights do not fit config.yaml."""
    with torch.device("meta"):
        unet = Unet(trained.unet.filters, trained.unet.dropout, network=trained.unet.network)
    try:
        unet.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{run_dir}: weights and config.yaml disagree: {' '.join(str(error).split())}") from error
    return unet.eval()


def find_inputs(config: Segment) -> tuple[dict[str, Path], float | None]:
    """(subject -> image, the value that replaces NaN); raises UsageError or DataError if there is no image.

    Without a cohort a subject is a file's name without its suffix.
    """
    if config.input is None:
        subjects = read_cohort(config.data.cohort_dir).of_split(config.split)
        nan_value = next(iter(subjects.values())).reading.nan_value
        return {name: subject.image for name, subject in subjects.items()}, nan_value
    source = Path(config.input)
    if not source.exists():
        raise UsageError(f"input={source}: no such file or folder")
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    images: dict[str, Path] = {}
    for path in files:
        suffix = next((name for name in SUFFIXES if path.name.endswith(name)), None)
        if suffix is None:
            if not source.is_dir():
                raise UsageError(f"input={source}: not a .nii or .nii.gz file")
            continue
        subject = path.name.removesuffix(suffix)
        if subject in images:
            raise DataError(f"{images[subject]} and {path} would both become {subject}.nii.gz; rename one of them")
        images[subject] = path
    if not images:
        raise DataError(f"input={source}: holds no .nii or .nii.gz file (folders below it are not searched)")
    return images, None


def open_record(out: Path, settings: Settings) -> dict[str, Any]:
    """The entries of `out` by subject; raises UsageError unless it is new, empty or has the same settings.

    Ranks that were stopped have left records of their own beside the common one.
    """
    path = out / RECORD
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"out={out}: is not empty and was not made by segment; name another folder")
        _write_record(path, settings, {})
    volumes: dict[str, Any] = {}
    current = asdict(settings)
    for record in [path, *sorted(out.glob(RANK_RECORD.format("*")))]:
        try:
            content = json.loads(record.read_text())
            stored, entries = content["settings"], content["volumes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{record}: not readable ({error}); remove the folder or name another one") from error
        differing = [
            f"{key}: {stored.get(key)} -> {current[key]}" for key in current if stored.get(key) != current[key]
        ]
        if differing:
            raise UsageError(f"out={out}: was made with other settings ({'; '.join(differing)}); name another folder")
        volumes |= entries
    return volumes


def _write_record(path: Path, settings: Settings, volumes: dict[str, Any]) -> None:
    content = {"format_version": FORMAT_VERSION, "settings": asdict(settings), "volumes": volumes}
    write_text(path, json.dumps(content, indent=1) + "\n")


def _is_up_to_date(entry: dict[str, Any] | None, image: Path, target: Path, settings: Settings) -> bool:
    """Whether the record's outputs exist, unchanged, and are of this very image."""
    if entry is None or not target.is_file():
        return False
    if settings.probability and not (target.parent / PROBABILITY / target.name).is_file():
        return False
    return entry["output_sha256"] == sha256_of(target) and entry["image_sha256"] == sha256_of(image)
