"""The preprocessing of one subject's volumes: read, denoise, correct the bias field, resample, mask; in this order."""

# X Y Z voxels of the canonical grid

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import bias, brain_mask, denoise, resample
from data_prep.layouts import SubjectFiles
from vesselgan.config.schema import Prepare, Preprocessing
from vesselgan.core.errors import DataError, ResourceError
from vesselgan.formats import volumes
from vesselgan.formats.nifti import MAX_VOXELS, format_sizes
from vesselgan.formats.volumes import Volume

MAX_VESSEL_CHANGE = 0.05  # of the vessels' volume by resampling; more is a warning
READING = ("nan_value", "label_values", "label_binarize_threshold")
PACKAGES = {"denoise": "scikit-image", "bias": "SimpleITK"}


@dataclass(frozen=True)
class Pipeline:
    """One cohort's preprocessing; the same for every subject."""

    settings: Preprocessing
    prepare: Prepare
    mask_tool: str
    """`given`, `bet`, `deepbet` or `none`."""

    def describe(self) -> dict[str, Any]:
        """Settings and tools with their versions; equal for two outputs that may stand in one cohort."""
        mask = brain_mask.describe_tool(self.mask_tool, bet_fraction=self.settings.bet_fraction)
        return {
            "settings": {key: value for key, value in asdict(self.settings).items() if key != "mask"},
            "mask": {"tool": "none"} if self.mask_tool == "none" else mask,
            "versions": {p: version(p) for step, p in PACKAGES.items() if getattr(self.settings, step)},
            "reading": {key: getattr(self.prepare, key) for key in READING},
        }


@dataclass
class PipelineOutput:
    """One subject's new volumes, and their provenance."""

    image_XYZ: np.ndarray
    label_XYZ: np.ndarray | None
    mask_XYZ: np.ndarray | None
    grid: resample.TargetGrid | None
    """None: the grid of the input."""
    steps: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def make_pipeline(settings: Preprocessing, prepare: Prepare, *, has_masks: bool) -> Pipeline:
    """ResourceError that names every tool that is not installed."""
    missing, mask_tool = [], "none"
    try:
        mask_tool = brain_mask.choose_tool(settings.mask, is_given=has_masks)
    except ResourceError as error:
        missing.append(str(error))
    try:
        if settings.bias:
            bias.import_simpleitk()
    except ResourceError as error:
        missing.append(str(error))
    if missing:
        raise ResourceError("; and ".join(missing))
    return Pipeline(settings, prepare, mask_tool)


def run_pipeline(files: SubjectFiles, pipeline: Pipeline) -> PipelineOutput:
    """Every step but the mask by a tool, which needs the finished image as a file (`add_brain_mask`).

    Zeros of the input, a background that was cut away, stay zeros. DataError for files that do not belong together.
    """
    settings, prepare = pipeline.settings, pipeline.prepare
    steps: list[dict[str, Any]] = []
    image = volumes.read_image(files.image, nan_value=prepare.nan_value)
    label_XYZ, mask_XYZ = _read_label_and_mask(files, image, pipeline)
    image_XYZ = image.data_XYZ
    if settings.denoise:
        with _naming(files.image):
            image_XYZ, provenance = denoise.denoise(
                image_XYZ,
                strength=settings.denoise_strength,
                patch=settings.denoise_patch,
                distance=settings.denoise_distance,
            )
        steps.append({"step": "denoise", **provenance})
    if settings.bias:
        with _naming(files.image):
            image_XYZ, provenance = bias.correct(
                image_XYZ, image.spacing_mm, shrink=settings.bias_shrink, iterations=settings.bias_iterations
            )
        steps.append({"step": "bias", **provenance})
    is_head_XYZ = image.data_XYZ != 0
    image_XYZ = np.where(is_head_XYZ, image_XYZ, np.float32(0))
    output = PipelineOutput(image_XYZ, label_XYZ, mask_XYZ, None, steps)
    if settings.spacing_mm is not None and not np.allclose(image.spacing_mm, settings.spacing_mm, rtol=1e-4):
        with _naming(files.image):
            _resample(output, image, settings.spacing_mm, is_head_XYZ)
    if output.mask_XYZ is not None:
        brain_mask.check_mask(output.mask_XYZ, f"{files.mask}: the mask")
    return output


def add_brain_mask(output: PipelineOutput, pipeline: Pipeline, image: Path, scratch: Path) -> None:
    """Let the tool make the mask of the finished image; nothing to do for a given mask or none."""
    if pipeline.mask_tool in ("bet", "deepbet"):
        fraction = pipeline.settings.bet_fraction
        output.mask_XYZ = brain_mask.run_tool(pipeline.mask_tool, image, scratch, bet_fraction=fraction)


def _read_label_and_mask(
    files: SubjectFiles, image: Volume, pipeline: Pipeline
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Label and given mask, on the image's grid."""
    if files.missing:
        raise DataError("; ".join(files.missing))
    label = mask = None
    if files.label is not None:
        prepare = pipeline.prepare
        label = volumes.read_label(
            files.label, label_values=prepare.label_values, label_binarize_threshold=prepare.label_binarize_threshold
        )
    if pipeline.mask_tool == "given" and files.mask is not None:
        mask = volumes.read_mask(files.mask)
    for other in (label, mask):
        if other is not None and (difference := volumes.grid_difference(image.header, other.header)) is not None:
            raise DataError(f"{other.path}: not on the grid of {files.image}: {difference}; resample it onto the image")
    return label.data_XYZ if label else None, mask.data_XYZ if mask else None


def _resample(output: PipelineOutput, image: Volume, spacing_mm: list[float], is_head_XYZ: np.ndarray) -> None:
    grid = resample.target_grid(image.data_XYZ.shape, image.affine, image.spacing_mm, spacing_mm)
    if min(grid.shape) < 2 or math.prod(grid.shape) > MAX_VOXELS:
        raise DataError(
            f"{format_sizes(grid.shape)} voxels at preprocess.spacing_mm={spacing_mm}, instead of "
            f"{format_sizes(image.data_XYZ.shape)} of {format_sizes(image.spacing_mm)} mm; choose a spacing nearer to "
            "the volume's own"
        )
    vessel_mm3 = None
    is_head_XYZ = resample.resample_label(grid, is_head_XYZ) > 0
    output.image_XYZ = np.where(is_head_XYZ, resample.resample_image(grid, output.image_XYZ), np.float32(0))
    if output.label_XYZ is not None:
        before_mm3 = float(np.count_nonzero(output.label_XYZ) * math.prod(image.spacing_mm))
        output.label_XYZ = resample.resample_label(grid, output.label_XYZ)
        after_mm3 = float(np.count_nonzero(output.label_XYZ) * math.prod(spacing_mm))
        vessel_mm3 = [before_mm3, after_mm3]
        output.warnings += _vessel_warnings(before_mm3, after_mm3)
    if output.mask_XYZ is not None:
        output.mask_XYZ = resample.resample_label(grid, output.mask_XYZ)
    output.grid = grid
    parameters = {
        "from_mm": list(image.spacing_mm),
        "to_mm": list(spacing_mm),
        "image": "cubic",
        "label": "linear, 0.5",
    }
    step = {"step": "resample", "tool": "scipy affine_transform", "version": version("scipy")}
    output.steps.append({**step, "parameters": parameters, "vessel_mm3_before_and_after": vessel_mm3})


def _vessel_warnings(before_mm3: float, after_mm3: float) -> list[str]:
    change = after_mm3 / before_mm3 - 1 if before_mm3 else 0.0
    if abs(change) <= MAX_VESSEL_CHANGE:
        return []
    return [
        f"resampling changed the vessels' volume by {change:+.0%} ({before_mm3:.4g} to {after_mm3:.4g} mm3): thin ones "
        "are lost or swollen; choose a finer preprocess.spacing_mm"
    ]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before a step's DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
