"""Whether synthetic heads are like the volumes of the training cohort, said before a U-Net learns from them."""

import json
from collections.abc import Iterable, Sequence

import numpy as np

from vesselgan.core.atomic_io import write_text
from vesselgan.core.console import log
from vesselgan.core.errors import DataError, ResourceError
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.intensities import scale_to_255
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.synthetic_volumes import COMPARISON, SyntheticVolumes
from vesselgan.formats.volumes import read_image, read_label, read_mask
from vesselgan.metrics.volume_statistics import VolumeStatistics, seam_statistic, volume_statistics
from vesselgan.synthesis.comparison import training_set
from vesselgan.synthesis.windows import Windows

MAX_VOLUMES = 4
"""Of a set; a volume of 312x384x127 takes about a minute."""
Ranges = dict[str, list[float]]
"""Name of a statistic -> smallest and largest of the volumes; of radii the 5th, 50th and 95th percentile."""


def compare_with_training(volumes: SyntheticVolumes, subjects: list[str], windows: Windows, run: RunDir) -> None:
    """Logs the ranges of both sets' statistics, and writes them beside the heads; of these alone without the others."""
    sets = {"synthetic heads": _ranges(_of_synthetic(volumes, name, windows) for name in subjects[:MAX_VOLUMES])}
    try:
        sets["training cohort"] = _of_training(run, windows.patch_shape)
    except (DataError, ResourceError) as error:
        log.info(f"not compared with the training cohort: {error}")
    for name, ranges in sets.items():
        texts = [f"{statistic} {' '.join(f'{value:.4g}' for value in values)}" for statistic, values in ranges.items()]
        log.info(f"{name}: {', '.join(texts)}")
    write_text(volumes.folder / COMPARISON, json.dumps(sets, indent=1) + "\n")


def _of_training(run: RunDir, patch_shape: tuple[int, int, int]) -> Ranges:
    """Raises DataError or ResourceError where the cohort is not as it was: shards may travel without volumes."""
    cohort_dir = run.config("train_gan").data.cohort_dir
    if training_set(run) is None:
        raise DataError(f"{cohort_dir}: its shards are not those of this run")
    names = list(Cohort.read(cohort_dir).of_split("train"))[:MAX_VOLUMES]
    return _ranges(_of_real(cohort_dir, name, patch_shape) for name in names)


def _of_synthetic(volumes: SyntheticVolumes, name: str, windows: Windows) -> tuple[VolumeStatistics, float]:
    volume = read_image(volumes.path("images", name))
    label_XYZ = read_label(volumes.path("labels", name)).data_XYZ
    mask_XYZ = read_mask(volumes.path("masks", name)).data_XYZ
    statistics = volume_statistics(volume.data_XYZ, label_XYZ, mask_XYZ, volume.spacing_mm)
    return statistics, seam_statistic(volume.data_XYZ, windows.borders)


def _of_real(cohort_dir: str, name: str, patch_shape: tuple[int, int, int]) -> tuple[VolumeStatistics, float]:
    """The seam statistic where windows would lie."""
    subject = Cohort.read(cohort_dir).subjects[name]
    volume = subject.read_image()
    image_XYZ, label_XYZ = scale_to_255(volume.data_XYZ, subject.limits), subject.read_label().data_XYZ
    mask_XYZ = np.ones_like(label_XYZ) if subject.mask is None else subject.read_mask().data_XYZ
    statistics = volume_statistics(image_XYZ, label_XYZ, mask_XYZ, volume.spacing_mm)
    return statistics, seam_statistic(image_XYZ, Windows(subject.shape, patch_shape).borders)


def _ranges(volumes: Iterable[tuple[VolumeStatistics, float]]) -> Ranges:
    statistics, seams = zip(*volumes, strict=True)
    named = {
        "seams": seams,
        "vessel fraction": [one.vessel_fraction for one in statistics],
        "share of it in the brain": [one.brain_share for one in statistics],
        "components": [one.num_components for one in statistics],
        "centreline mm": [one.centreline_mm for one in statistics],
        "consistency": [one.consistency for one in statistics],
    }
    ranges = {name: _ends([value for value in values if value is not None]) for name, values in named.items()}
    radii = {
        "in the brain": [one.brain_radius_mm for one in statistics],
        "outside it": [one.outside_radius_mm for one in statistics],
    }
    for where, arrays in radii.items():
        radii_mm = np.concatenate(arrays)
        quantiles = np.quantile(radii_mm, [0.05, 0.5, 0.95]).tolist() if len(radii_mm) else []
        ranges[f"radius mm (5, 50, 95 %) {where}"] = quantiles
    return ranges


def _ends(values: Sequence[float]) -> list[float]:
    return [float(min(values)), float(max(values))] if values else []
