"""Segments whole volumes with a trained U-Net, on any number of ranks: NIfTI in, NIfTI out on the same grid."""

import sys
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from vesselgan.config.schema import Segment, TrainUnet
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.console import counted, log
from vesselgan.core.errors import CheckpointError, DataError, UsageError
from vesselgan.core.names import check_id, check_inside
from vesselgan.formats.checkpoint_folder import CHECKPOINTS, weights_file
from vesselgan.formats.cohort import Cohort, Subject
from vesselgan.formats.intensities import intensity_limits, padding_problem, scale_to_255
from vesselgan.formats.predictions import Predictions
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.volumes import Volume, read_image, write_like
from vesselgan.models.unet import Unet
from vesselgan.runtime import distributed
from vesselgan.runtime.checkpoint import read_weights
from vesselgan.segmentation.sliding_window import probability_map
from vesselgan.segmentation.training_provenance import is_preprocessed

NETWORK = "unet"
SUFFIXES = (".nii.gz", ".nii")
SPACING_RATIO = 1.25
"""Of an image's spacing to the training volumes', beyond which it is said; cohorts of one protocol differ less."""


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
    spacing_mm: list[float] | None
    """Of the volumes that it learned from; null if unknown, as the next."""
    is_preprocessed: bool | None
    """Whether `vesselgan preprocess` made them."""
    scaling: str
    percentiles: list[float]
    threshold: float
    overlap: float
    batch_size: int
    min_component_voxels: int | None
    probability: bool
    unet_seed: int
    label_threshold: float | None
    """Of the synthetic training labels; null: as their manifest recommends."""
    privacy: dict[str, Any] | None
    """The budget spent on the training patches; null unless a private GAN made them."""
    learned_from: dict[str, Any] | None
    """The volumes that it may not be scored on (segmentation.training_provenance); null if unknown."""


@dataclass(frozen=True)
class Input:
    """An image to segment."""

    image: Path
    subject: Subject | None = None
    """In a cohort: it is read and scaled as its data preparation checked it."""

    def __str__(self) -> str:
        return str(self.image) if self.subject is None else self.subject.pseudonym or str(self.image)


def segment(config: Segment) -> Predictions:
    """Write OUT/<subject>.nii.gz, {0, 1} in the image's own number type, for a file, a folder or a cohort's split.

    Each image is scaled by the limits of its cohort, others by the checkpoint's percentiles, and predicted in float32
    whatever the run's precision. The folder's record holds the settings and each volume's checksums; a volume that it
    lists unchanged is kept, so a stopped job resumes. Ranks divide the volumes. Raises UsageError if OUT holds
    something else.
    """
    out = Predictions(config.out, cohort_dir=config.data.cohort_dir if config.input is None else None)
    trained: TrainUnet = RunDir(config.run).config("train_unet")
    settings, weights = read_run(config, trained)
    inputs, percentiles = find_inputs(config)
    learned_percentiles = settings.percentiles
    settings = replace(settings, percentiles=list(percentiles or learned_percentiles))
    recorded = asdict(settings)
    if any(item.image.parent.resolve() == out.folder.resolve() for item in inputs.values()):
        raise UsageError(f"out={config.out} is the folder of the images: name another one, inputs are never changed")
    if not config.allow_mismatch:
        check_preprocessing(settings.is_preprocessed, inputs.values())
    world = distributed.join_ranks(config.runtime.device)
    try:
        unet = load_unet(weights, trained, config.run).to(world.device)
        volumes = distributed.run_on_rank0(world, lambda: out.open(recorded))
        ranks = f", on {world.size} ranks" if world.size > 1 else ""
        count = counted(len(inputs), "volume")
        log.info(f"segmenting {count} with {settings.run}, {settings.checkpoint}, into {config.out}{ranks}")
        for number, subject in list(enumerate(inputs, 1))[world.rank :: world.size]:
            item, head = inputs[subject], f"[{number}/{len(inputs)}] {subject}"
            with nullcontext() if item.subject is None else item.subject.hidden_paths():
                if out.is_up_to_date(subject, volumes.get(subject), item.image, probability=settings.probability):
                    print(f"{head}: done already", flush=True)
                    continue
                started = time.perf_counter()
                volumes[subject] = segment_volume(unet, item, out, subject, settings, learned_percentiles)
            print(f"{head}: {_in_words(volumes[subject])}, {time.perf_counter() - started:.1f} s", flush=True)
            out.write(recorded, volumes, rank=world.rank)
        distributed.barrier()
        if world.is_main:
            out.merge(recorded, volumes)
    finally:
        distributed.stop()
    return out


def read_run(config: Segment, trained: TrainUnet) -> tuple[Settings, dict[str, Tensor]]:
    """The settings and the weights of the U-Net of config.run."""
    run = RunDir(config.run)
    name = config.checkpoint or best_checkpoint(run)
    weights, state = read_weights(run.path, NETWORK, name)
    settings = Settings(
        run=run.name,
        checkpoint=name,
        source=trained.data.source,
        shuffle_labels=trained.data.shuffle_labels,
        weights_sha256=sha256_of(run.path / CHECKPOINTS / name / weights_file(NETWORK)),
        patch_shape=state["patch_shape"],
        spacing_mm=state.get("spacing_mm"),
        is_preprocessed=state.get("is_preprocessed"),
        scaling=state["scaling"],
        percentiles=state["percentiles"],
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
    unet: Unet, item: Input, out: Predictions, subject: str, settings: Settings, learned_percentiles: Sequence[float]
) -> dict[str, Any]:
    """Segment one image; returns its entry in the record."""
    volume, limits = read_scaled(item, settings.percentiles)
    warnings = differences(settings, item.image, volume.spacing_mm, learned_percentiles)
    for warning in warnings:
        log.warning(f"{item}: {warning}; the segmentation may be wrong")
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
        write_like(out.probability(subject), probability_XYZ, item.image)
    write_like(out.label(subject), label_XYZ.astype(volume.header.dtype), item.image)
    return {
        "shape": list(label_XYZ.shape),
        "limits": list(limits),
        "num_vessel_voxels": int(np.count_nonzero(label_XYZ)),
        "num_removed_components": num_removed,
        "warnings": warnings,
        "image_sha256": sha256_of(item.image),
        "output_sha256": sha256_of(out.label(subject)),
    }


def read_scaled(item: Input, percentiles: Sequence[float]) -> tuple[Volume, tuple[float, float]]:
    """(image, the intensities that become 0 and 255). Raises DataError for what `vesselgan check` would refuse."""
    if item.subject is not None:
        return item.subject.read_image(), item.subject.limits
    volume = read_image(item.image)
    try:
        limits = intensity_limits(volume.data_XYZ, percentiles)
    except DataError as error:
        raise DataError(f"{item}: {error}") from error
    if (problem := padding_problem(volume.data_XYZ, limits)) is not None:
        raise DataError(f"{item}: {problem}")
    return volume, limits


def differences(
    settings: Settings, image: Path, spacing_mm: Sequence[float], learned_percentiles: Sequence[float]
) -> list[str]:
    """In what an image is unlike those that the U-Net learned from."""
    found = []
    if list(settings.percentiles) != list(learned_percentiles):
        own, theirs = (" and ".join(f"{p:g}" for p in pair) for pair in (settings.percentiles, learned_percentiles))
        found.append(f"scaled between the percentiles {own} of its cohort, the U-Net learned between {theirs}")
    learned = settings.spacing_mm
    ratios = [] if learned is None else [a / b for a, b in zip(spacing_mm, learned, strict=True)]
    if any(not 1 / SPACING_RATIO <= ratio <= SPACING_RATIO for ratio in ratios):
        sizes = " x ".join(f"{s:g}" for s in spacing_mm)
        found.append(f"voxels of {sizes} mm, the U-Net learned from {' x '.join(f'{s:g}' for s in learned or [])} mm")
    if settings.is_preprocessed not in (None, is_preprocessed(image)):
        found.append(_preprocessing_mismatch(is_trained_on_preprocessed=not is_preprocessed(image)))
    return found


def check_preprocessing(of_training: bool | None, inputs: Collection[Input]) -> None:
    """Raises DataError for images that were not preprocessed as the training volumes were; None: unknown."""
    if wrong := [item for item in inputs if of_training not in (None, is_preprocessed(item.image))]:
        raise DataError(
            f"{wrong[0]}{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}: "
            f"{_preprocessing_mismatch(is_trained_on_preprocessed=bool(of_training))}; what it segments there means "
            "nothing. Where they were prepared alike with another program: allow_mismatch=true"
        )


def _preprocessing_mismatch(*, is_trained_on_preprocessed: bool) -> str:
    if is_trained_on_preprocessed:
        return (
            "not preprocessed by `vesselgan preprocess` (no image.json beside image.nii.gz), the U-Net learned from "
            "volumes that were"
        )
    return "preprocessed, the U-Net learned from raw volumes"


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


def best_checkpoint(run: RunDir) -> str:
    """The checkpoint that is best on validation; raises UsageError if the run is not finished."""
    try:
        facts = run.finished()
    except DataError as error:
        raise CheckpointError(f"{error}; or set checkpoint=NAME") from error
    if facts is None or "best_checkpoint" not in facts:
        raise UsageError(
            f"{run.path}: not finished, so its best checkpoint is not known; finish it with the command that "
            "started it, or set checkpoint=NAME"
        )
    return str(facts["best_checkpoint"])


def load_unet(weights: dict[str, Tensor], trained: TrainUnet, run_dir: str) -> Unet:
    """The U-Net in evaluation mode, float32; raises CheckpointError if the weights do not fit the configuration."""
    with torch.device("meta"):
        unet = Unet(trained.unet.filters, trained.unet.dropout, network=trained.unet.network)
    try:
        unet.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{run_dir}: weights and configuration disagree: {' '.join(str(error).split())}"
        ) from error
    return unet.eval()


def find_inputs(config: Segment) -> tuple[dict[str, Input], Sequence[float] | None]:
    """(subject -> image, a cohort's percentiles); raises UsageError or DataError if there is no image.

    Without a cohort a subject is a file's name without its suffix.
    """
    if config.input is None:
        cohort = Cohort.read(config.data.cohort_dir)
        subjects = cohort.of_split(config.split)
        return {name: Input(subject.image, subject) for name, subject in subjects.items()}, cohort.percentiles
    source = Path(config.input)
    if not source.exists():
        raise UsageError(f"input={source}: no such file or folder")
    files = [path for path in sorted(source.iterdir()) if path.name[0] != "."] if source.is_dir() else [source]
    images: dict[str, Path] = {}
    for path in files:
        suffix = next((name for name in SUFFIXES if path.name.endswith(name)), None)
        if suffix is None:
            if not source.is_dir():
                raise UsageError(f"input={source}: not a .nii or .nii.gz file")
            continue
        subject = check_id(path.name.removesuffix(suffix), path)
        if subject in images:
            raise DataError(f"{images[subject]} and {path} would both become {subject}.nii.gz; rename one of them")
        images[subject] = path
    if source.is_dir() and not config.follow_links:
        check_inside(source, images.values(), "copy what it names, or follow_links=true reads it")
    if not images:
        raise DataError(f"input={source}: holds no .nii or .nii.gz file (folders below it are not searched)")
    return {subject: Input(path) for subject, path in images.items()}, None
