"""What is done to a subject's volumes in preprocessing: the steps, in order, and what each one says of itself."""

# X Y Z voxels of the canonical grid

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
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

MOST_CHANGE = 0.05  # of the vessels' volume by resampling, before it is worth a warning
PACKAGES = {"denoise": "scikit-image", "bias": "SimpleITK"}
Step = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One cohort's preprocessing; the same for every subject."""

    settings: Preprocessing
    prepare: Prepare
    mask_tool: str
    """`given`, `bet`, `deepbet` or `none`."""

    def described(self) -> dict[str, Any]:
        """Settings and tools with their versions: what two outputs must share to be of one kind."""
        mask = brain_mask.facts(self.mask_tool, bet_fraction=self.settings.bet_fraction)
        return {
            "settings": {key: value for key, value in asdict(self.settings).items() if key != "mask"},
            "mask": {"tool": "none"} if self.mask_tool == "none" else mask,
            "versions": {p: version(p) for step, p in PACKAGES.items() if getattr(self.settings, step)},
            "reading": {
                key: getattr(self.prepare, key) for key in ("nan_value", "label_values", "label_binarize_threshold")
            },
        }


@dataclass
class Outcome:
    """One subject's new volumes, and how they came about."""

    image_XYZ: np.ndarray
    label_XYZ: np.ndarray | None
    mask_XYZ: np.ndarray | None
    grid: resample.Grid | None
    """None: the grid of the input."""
    steps: list[Step]
    seconds: dict[str, float] = field(default_factory=dict)
    """Step -> wall time."""
    warnings: list[str] = field(default_factory=list)


def choose(settings: Preprocessing, prepare: Prepare, *, has_masks: bool) -> Recipe:
    """The recipe, once its tools are known to be there. ResourceError names the one that is not."""
    if settings.bias:
        try:
            version(PACKAGES["bias"])
        except PackageNotFoundError as error:
            raise ResourceError(
                "preprocess.bias=true needs SimpleITK: pip install 'vesselgan[preprocess]', or say "
                "preprocess.bias=false"
            ) from error
    return Recipe(settings, prepare, brain_mask.choose(settings.mask, is_given=has_masks))


def work_on(files: SubjectFiles, recipe: Recipe) -> Outcome:
    """Read a subject, denoise, correct and resample it; the mask by a tool is made afterwards (`add_mask`).

    Zeros of the input, a background that was cut away, stay zeros. DataError for files that do not belong together.
    """
    settings, prepare, seconds = recipe.settings, recipe.prepare, {}
    with _timed(seconds, "read"):
        image = volumes.read_image(files.image, nan_value=prepare.nan_value)
        label, mask = _companions(files, image, recipe)
    image_XYZ, steps = image.data_XYZ, []
    if settings.denoise:
        with _timed(seconds, "denoise"), _named(files.image):
            image_XYZ, facts = denoise.denoise(
                image_XYZ,
                strength=settings.denoise_strength,
                patch=settings.denoise_patch,
                distance=settings.denoise_distance,
            )
        steps.append({"step": "denoise", **facts})
    if settings.bias:
        with _timed(seconds, "bias"), _named(files.image):
            image_XYZ, facts = bias.correct(
                image_XYZ, image.spacing_mm, shrink=settings.bias_shrink, iterations=settings.bias_iterations
            )
        steps.append({"step": "bias", **facts})
    is_head_XYZ = image.data_XYZ != 0
    image_XYZ = np.where(is_head_XYZ, image_XYZ, np.float32(0))
    outcome = Outcome(image_XYZ, label and label.data_XYZ, mask and mask.data_XYZ, None, steps, seconds)
    if settings.spacing_mm is not None and not np.allclose(image.spacing_mm, settings.spacing_mm, rtol=1e-4):
        with _timed(seconds, "resample"), _named(files.image):
            _resample(outcome, image, settings.spacing_mm, is_head_XYZ)
    if outcome.mask_XYZ is not None:
        brain_mask.require_sense(outcome.mask_XYZ, f"{files.mask}: the mask")
    return outcome


def add_mask(outcome: Outcome, recipe: Recipe, image: Path, scratch: Path) -> None:
    """Let the tool make the brain mask of the finished image, where one is asked for."""
    if recipe.mask_tool in ("bet", "deepbet"):
        with _timed(outcome.seconds, "mask"):
            outcome.mask_XYZ = brain_mask.make(
                recipe.mask_tool, image, scratch, bet_fraction=recipe.settings.bet_fraction
            )


def _companions(files: SubjectFiles, image: Volume, recipe: Recipe) -> tuple[Volume | None, Volume | None]:
    """Label and given mask, on the image's grid."""
    if files.missing:
        raise DataError("; ".join(files.missing))
    label = mask = None
    if files.label is not None:
        rules = recipe.prepare
        label = volumes.read_label(
            files.label, label_values=rules.label_values, label_binarize_threshold=rules.label_binarize_threshold
        )
    if recipe.mask_tool == "given":
        mask = volumes.read_mask(files.mask)
    for other in (label, mask):
        if other is not None and (difference := volumes.grid_difference(image.header, other.header)) is not None:
            raise DataError(f"{other.path}: not on the grid of {files.image}: {difference}; resample it onto the image")
    return label, mask


def _resample(outcome: Outcome, image: Volume, spacing_mm: list[float], is_head_XYZ: np.ndarray) -> None:
    grid = resample.grid_of(image.data_XYZ.shape, image.affine, image.spacing_mm, spacing_mm)
    if min(grid.shape) < 2 or math.prod(grid.shape) > MAX_VOXELS:
        raise DataError(
            f"{format_sizes(grid.shape)} voxels at preprocess.spacing_mm={spacing_mm}, instead of "
            f"{format_sizes(image.data_XYZ.shape)} of {format_sizes(image.spacing_mm)} mm; choose a spacing nearer to "
            "the volume's own"
        )
    vessel_mm3 = None
    is_head_XYZ = resample.label_onto(grid, is_head_XYZ) > 0
    outcome.image_XYZ = np.where(is_head_XYZ, resample.image_onto(grid, outcome.image_XYZ), np.float32(0))
    if outcome.label_XYZ is not None:
        before_mm3 = np.count_nonzero(outcome.label_XYZ) * math.prod(image.spacing_mm)
        outcome.label_XYZ = resample.label_onto(grid, outcome.label_XYZ)
        vessel_mm3 = [float(before_mm3), float(np.count_nonzero(outcome.label_XYZ) * math.prod(spacing_mm))]
        outcome.warnings += _changed_vessels(*vessel_mm3)
    if outcome.mask_XYZ is not None:
        outcome.mask_XYZ = resample.label_onto(grid, outcome.mask_XYZ)
    outcome.grid = grid
    parameters = {
        "from_mm": list(image.spacing_mm),
        "to_mm": list(spacing_mm),
        "image": "cubic",
        "label": "linear, 0.5",
    }
    step = {"step": "resample", "tool": "scipy affine_transform", "version": version("scipy")}
    outcome.steps.append({**step, "parameters": parameters, "vessel_mm3_before_and_after": vessel_mm3})


def _changed_vessels(before_mm3: float, after_mm3: float) -> list[str]:
    """A warning where the new grid keeps another volume of vessels: it is too coarse for the thin ones."""
    change = after_mm3 / before_mm3 - 1 if before_mm3 else 0.0
    if abs(change) <= MOST_CHANGE:
        return []
    return [
        f"resampling changed the vessels' volume by {change:+.0%} ({before_mm3:.4g} to {after_mm3:.4g} mm3): thin ones "
        "are lost or swollen; choose a finer preprocess.spacing_mm"
    ]


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - begin


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file a step's DataError is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
