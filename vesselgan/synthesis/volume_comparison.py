"""Whether synthetic heads are like the volumes of the training cohort, said before a U-Net learns from them."""

from collections.abc import Iterable, Sequence

import numpy as np

from vesselgan.core.console import log
from vesselgan.formats.cohort import Cohort, shards_dir
from vesselgan.formats.intensities import scale_to_255
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import MANIFEST, content_hash
from vesselgan.formats.synthetic_volumes import SyntheticVolumes
from vesselgan.formats.volumes import read_image, read_label, read_mask
from vesselgan.metrics.volume_statistics import VolumeStatistics, seam_statistic, volume_statistics
from vesselgan.synthesis.windows import Windows

MAX_VOLUMES = 4
"""Of a set; a volume of 312x384x127 takes about a minute."""


def log_volume_comparison(volumes: SyntheticVolumes, subjects: list[str], windows: Windows, run: RunDir) -> None:
    """Logs the ranges of both sets' statistics."""
    log.info(f"synthetic heads: {_line(_of_synthetic(volumes, name, windows) for name in subjects[:MAX_VOLUMES])}")
    cohort_dir = run.config("train_gan").data.cohort_dir
    folder = shards_dir(cohort_dir, "gan", "train")
    if not (folder / MANIFEST).is_file() or content_hash(folder) != run.trained_on():
        log.info(f"not compared with the training cohort, which is not in {cohort_dir}")
        return
    names = list(Cohort.read(cohort_dir).of_split("train"))[:MAX_VOLUMES]
    log.info(f"training cohort: {_line(_of_real(cohort_dir, name, windows.patch_shape) for name in names)}")


def _of_synthetic(volumes: SyntheticVolumes, name: str, windows: Windows) -> tuple[VolumeStatistics, float]:
    volume = read_image(volumes.path("images", name))
    label_XYZ, mask_XYZ = (
        read_label(volumes.path("labels", name)).data_XYZ,
        read_mask(volumes.path("masks", name)).data_XYZ,
    )
    statistics = volume_statistics(volume.data_XYZ, label_XYZ, mask_XYZ, volume.spacing_mm)
    return statistics, seam_statistic(volume.data_XYZ, windows.borders)


def _of_real(cohort_dir: str, name: str, patch_shape: tuple[int, int, int]) -> tuple[VolumeStatistics, float]:
    """The seam statistic where windows would lie."""
    subject = Cohort.read(cohort_dir).subjects[name]
    volume = subject.read_image()
    image_XYZ, label_XYZ = scale_to_255(volume.data_XYZ, subject.limits), subject.read_label().data_XYZ
    mask_XYZ = np.ones_like(label_XYZ) if subject.mask is None else read_mask(subject.mask).data_XYZ
    statistics = volume_statistics(image_XYZ, label_XYZ, mask_XYZ, volume.spacing_mm)
    return statistics, seam_statistic(image_XYZ, Windows(subject.shape, patch_shape).borders)


def _line(volumes: Iterable[tuple[VolumeStatistics, float]]) -> str:
    statistics, seams = zip(*volumes, strict=True)
    radii = [
        np.concatenate([getattr(one, f"{where}_radius_mm") for one in statistics]) for where in ("brain", "outside")
    ]
    named = {
        "seams": seams,
        "vessel fraction": [one.vessel_fraction for one in statistics],
        "share of it in the brain": [one.brain_share for one in statistics],
        "components": [one.num_components for one in statistics],
        "centreline mm": [one.centreline_mm for one in statistics],
        "consistency": [one.consistency for one in statistics],
    }
    ranges = [f"{name} {_range(values)}" for name, values in named.items()]
    quantiles = [
        " ".join(f"{mm:.2f}" for mm in np.quantile(of, [0.05, 0.5, 0.95])) if len(of) else "none" for of in radii
    ]
    return f"{', '.join(ranges)}, radius mm (5, 50, 95 %) {quantiles[0]} in the brain, {quantiles[1]} outside"


def _range(values: Sequence[float | None]) -> str:
    defined = [value for value in values if value is not None]
    return f"{min(defined):.4g} to {max(defined):.4g}" if defined else "none"
