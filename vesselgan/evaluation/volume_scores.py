"""Scores segmented volumes against their labels, and the best global intensity threshold as a baseline.

A result holds every score of vesselgan.metrics.scores per subject and region, their summary, and hashes of all inputs.
Regions: `all` vessels, and `intracranial`, where the brain mask is applied to both sides. The global threshold is
fitted on validation subjects, never on the subjects that are scored.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.config.schema import Evaluate
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.console import counted, log
from vesselgan.core.errors import DataError, UsageError
from vesselgan.core.names import check_inside
from vesselgan.evaluation import error_maps
from vesselgan.formats.cohort import COHORT, Cohort, Subject
from vesselgan.formats.intensities import scale_to_255
from vesselgan.formats.predictions import Predictions
from vesselgan.formats.volumes import Volume, grid_difference, read_header, read_label
from vesselgan.metrics.scores import UNITS, Entry, count_empty, is_empty, score, summarise
from vesselgan.runtime.provenance import collect

LEVELS_PER_UNIT = 257  # the shards' quantisation: 65,536 levels from 0 to 255
TITLES = {"real": "U-Net on real", "synthetic": "U-Net on synthetic", "both": "U-Net on real and synthetic"}
THRESHOLD_TITLE = "Best global threshold"


def score_predictions(config: Evaluate) -> dict[str, Any]:
    """Scores PREDICTIONS/<subject>.nii.gz against the label for every subject of the split, and writes error maps.

    Raises DataError for a missing prediction, label or mask, for a prediction of another image than the subject's, and
    for a volume that the U-Net was trained on.
    """
    cohort = Cohort.read(config.data.cohort_dir)
    subjects = cohort.of_split(config.split)
    if config.predictions is None:
        raise UsageError("evaluate=segmentation needs predictions=DIR, the folder that `vesselgan segment` wrote")
    predictions = Predictions(config.predictions)
    settings = predictions.settings()
    learned_from = settings.pop("learned_from", None)
    overlap = check_unseen(learned_from, subjects, config)
    regions = regions_of(subjects)
    paths = {name: predictions.label(name) for name in subjects}
    check_inside(predictions.folder, paths.values())
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        raise DataError(
            f"{config.predictions}: no prediction for {', '.join(missing)} (subject.nii.gz); run `vesselgan segment` "
            f"on split {config.split} of cohort {cohort.name} first"
        )
    for name, subject in subjects.items():
        with subject.hidden_paths():
            predictions.check(name, subject.image)
    warnings = {name: texts for name, texts in predictions.warnings().items() if name in subjects}
    for name, texts in warnings.items():
        log.warning(f"{name}: scores of a questionable segmentation: {'; '.join(texts)}")
    entries: list[Entry] = []
    inputs: dict[str, str] = {}
    for name, subject in subjects.items():
        with subject.hidden_paths():
            truth_XYZ, mask_XYZ = read_truth(name, subject, needs_mask="intracranial" in regions)
            assert subject.label is not None, "read_truth has read it"
            predicted_XYZ = _read_on_grid(name, paths[name], subject.label)
            entries += score_and_log(name, truth_XYZ, predicted_XYZ, mask_XYZ, subject, regions=regions)
            if config.error_maps is not None:
                errors_XYZ = error_maps.error_map(truth_XYZ, predicted_XYZ)
                error_maps.write(Path(config.error_maps), name, errors_XYZ, subject.label, subject.spacing_mm)
            inputs |= hash_files(name, {"prediction": paths[name], "label": subject.label, "mask": subject.mask})
    metadata = {
        "title": _title(settings, config.name),
        "threshold": settings.get("threshold"),
        "segmented_with": settings,
        "input_warnings": warnings,
        "training_overlap": overlap,
        "gan": (learned_from or {}).get("gan"),
    }
    return _result(config, cohort, entries, inputs, metadata)


def score_threshold(config: Evaluate) -> dict[str, Any]:
    """Scores the best global threshold, fitted on the validation subjects of config.fit_cohort, on another split.

    One threshold on the 0..255 scale per region. Raises DataError for a missing label or mask.
    """
    if config.split == "validation":
        raise UsageError("split=validation: the threshold is fitted there; score it on another split")
    cohort = Cohort.read(config.data.cohort_dir)
    subjects = cohort.of_split(config.split)
    fit_cohort = Cohort.read(Path(config.fit_cohort or config.data.cohort_dir))
    fit_subjects = fit_cohort.of_split("validation")
    _check_disjoint(fit_subjects, subjects)
    regions = tuple(region for region in regions_of(subjects) if region in regions_of(fit_subjects))
    levels = fit_threshold(fit_subjects, regions)
    entries: list[Entry] = []
    inputs: dict[str, str] = {}
    for name, subject in subjects.items():
        with subject.hidden_paths():
            truth_XYZ, mask_XYZ = read_truth(name, subject, needs_mask="intracranial" in regions)
            level_XYZ = read_levels(name, subject)
        for region, level in levels.items():
            predicted_XYZ = level_XYZ >= level
            entries += score_and_log(name, truth_XYZ, predicted_XYZ, mask_XYZ, subject, regions=(region,))
    for prefix, members in (("", subjects), ("fitted on ", fit_subjects)):
        for name, subject in members.items():
            files = {"image": subject.image, "label": subject.label, "mask": subject.mask}
            with subject.hidden_paths():
                inputs |= hash_files(prefix + name, files)
    thresholds = {region: level / LEVELS_PER_UNIT for region, level in levels.items()}
    values = ", ".join(f"{region} {value:.1f}" for region, value in thresholds.items())
    log.info(f"best threshold on {counted(len(fit_subjects), 'validation subject')} (0..255): {values}")
    metadata = {
        "title": THRESHOLD_TITLE,
        "threshold": thresholds["all"],
        "thresholds": thresholds,
        "fitted_on": {"cohort": fit_cohort.name, "split": "validation", "subjects": sorted(fit_subjects)},
    }
    return _result(config, cohort, entries, inputs, metadata)


def regions_of(subjects: dict[str, Subject]) -> tuple[str, ...]:
    """Returns `all`, and `intracranial` if every subject has a brain mask; raises DataError if only some have one."""
    without_mask = [name for name, subject in subjects.items() if subject.mask is None]
    if not without_mask:
        return ("all", "intracranial")
    if len(without_mask) < len(subjects):
        raise DataError(
            f"no brain mask for {', '.join(without_mask)} while others have one; make the missing masks and prepare "
            "the cohort again, or set data.layout.mask=null for all"
        )
    log.info("no brain masks in this cohort: intracranial scores are left out")
    return ("all",)


def score_and_log(
    name: str,
    truth_XYZ: np.ndarray,
    predicted_XYZ: np.ndarray,
    mask_XYZ: np.ndarray | None,
    subject: Subject,
    *,
    regions: tuple[str, ...],
) -> list[Entry]:
    """Returns the subject's entries; logs an empty label or prediction, whose scores are defined, not measured."""
    entries = score(name, truth_XYZ, predicted_XYZ, mask_XYZ, subject.spacing_mm, regions=regions)
    for entry in entries:
        if is_empty(entry):
            log.info(f"{name}, {entry['region']}: {entry['truth_voxels']} vessel voxels in the label, "
                  f"{entry['predicted_voxels']} predicted; one empty side scores Dice 0 and the volume's diagonal, two "
                  "score 1 and 0")  # fmt: skip
    return entries


def _check_disjoint(fit_subjects: dict[str, Subject], subjects: dict[str, Subject]) -> None:
    """Raises DataError if a scored volume, by its voxels, is one that the threshold is fitted on."""
    fitted = {subject.image_sha256: name for name, subject in fit_subjects.items()}
    if shared := [f"{name} is {fitted[s.image_sha256]}" for name, s in subjects.items() if s.image_sha256 in fitted]:
        raise DataError(
            f"fit_cohort: the threshold is fitted on volumes that are scored ({', '.join(shared)}, the same voxels); "
            "remove them from one of the splits"
        )


def check_unseen(learned_from: dict[str, Any] | None, subjects: dict[str, Subject], config: Evaluate) -> str:
    """Returns a sentence on what was compared; raises DataError if a scored volume trained or selected the U-Net.

    learned_from: as in segmentation.training_provenance; None if the predictions do not record it. With
    split=validation the volumes that selected the checkpoint may be scored.
    """
    if learned_from is None:
        overlap = "not checked: the predictions do not say what their U-Net learned from"
    else:
        volumes = {"has learned from": learned_from["train"]}
        if config.split != "validation":
            volumes["was chosen on"] = learned_from["validation"]
        for verb, sha256s in volumes.items():
            if shared := [name for name, subject in subjects.items() if subject.image_sha256 in sha256s]:
                raise DataError(
                    f"{config.predictions}: the U-Net {verb} {', '.join(shared)} (the same voxels), which split "
                    f"{config.split} of {config.data.cohort_dir} holds; score volumes that it has not seen"
                )
        count = sum(len(sha256s) for sha256s in volumes.values())
        overlap = f"none; {len(subjects)} compared with the {count} learned from or chosen on, by their voxels"
        if learned_from["unknown"]:
            overlap = f"not checked in part: {'; '.join(learned_from['unknown'])}; {overlap}"
    log.info(f"training volumes among the scored ones: {overlap}")
    return overlap


def fit_threshold(subjects: dict[str, Subject], regions: tuple[str, ...]) -> dict[str, int]:
    """Region -> the lowest level (see `read_levels`) with the highest mean Dice over the subjects."""
    total = {region: np.zeros(255 * LEVELS_PER_UNIT + 1) for region in regions}
    for name, subject in subjects.items():
        with subject.hidden_paths():
            truth_XYZ, mask_XYZ = read_truth(name, subject, needs_mask="intracranial" in regions)
            level_XYZ = read_levels(name, subject)
        for region in regions:
            region_XYZ = mask_XYZ if region == "intracranial" else np.ones_like(truth_XYZ)
            total[region] += dice_by_level(level_XYZ[region_XYZ], truth_XYZ[region_XYZ])
    return {region: int(np.argmax(sums)) for region, sums in total.items()}


def dice_by_level(level_V: np.ndarray, truth_V: np.ndarray) -> np.ndarray:
    """Dice of `level >= k` for every k = 0 .. 65535, from two histograms; 1 if both sides are empty."""
    num_levels = 255 * LEVELS_PER_UNIT + 1
    predicted = np.bincount(level_V, minlength=num_levels)[::-1].cumsum()[::-1]
    shared = np.bincount(level_V[truth_V], minlength=num_levels)[::-1].cumsum()[::-1]
    size = predicted + int(np.count_nonzero(truth_V))
    return np.where(size > 0, 2 * shared / np.maximum(size, 1), 1.0)


def read_levels(name: str, subject: Subject) -> np.ndarray:
    """Returns the image scaled to 0..255 by the cohort's limits, in steps of 1/257, rounded down; uint16."""
    volume = subject.read_image()
    if volume.data_XYZ.shape != subject.shape:
        raise DataError(f"{name}: {subject.image} has changed since the cohort was prepared; prepare it again")
    return np.floor(scale_to_255(volume.data_XYZ, subject.limits) * np.float32(LEVELS_PER_UNIT)).astype(np.uint16)


def read_truth(name: str, subject: Subject, *, needs_mask: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns (vessel label, brain mask or None), bool, on one grid."""
    if subject.label is None:
        raise DataError(f"{name}: the cohort has no vessel label for it, so it cannot be scored; leave it out")
    truth_XYZ = subject.read_label().data_XYZ.astype(bool)
    if not needs_mask:
        return truth_XYZ, None
    assert subject.mask is not None, "regions_of gives `intracranial` only if every subject has a mask"
    return truth_XYZ, _read_on_grid(name, subject.mask, subject.label, lambda _: subject.read_mask())


def _read_on_grid(name: str, path: Path, label: Path, read: Callable[[Path], Volume] = read_label) -> np.ndarray:
    """Returns a mask or a prediction as bool; raises DataError unless it lies on the label's grid."""
    if difference := grid_difference(read_header(label), read_header(path)):
        raise DataError(f"{name}: {label} and {path} are not on one grid: {difference}")
    return read(path).data_XYZ.astype(bool)


def hash_files(name: str, files: dict[str, Path | None]) -> dict[str, str]:
    """`<subject> <role>` -> sha256 of the files that are not None. No paths: they would name machines and people."""
    return {f"{name} {role}": sha256_of(path) for role, path in files.items() if path is not None}


def _result(
    config: Evaluate, cohort: Cohort, entries: list[Entry], inputs: dict[str, str], metadata: dict[str, Any]
) -> dict[str, Any]:
    return {
        "job": "segmentation",
        "name": config.name,
        "cohort": cohort.name,
        "split": config.split,
        **metadata,
        "units": UNITS,
        "patients": {name: subject.patient or name for name, subject in cohort.of_split(config.split).items()},
        "subjects": entries,
        "summary": summarise(entries),
        "empty": count_empty(entries),
        "inputs": {COHORT: sha256_of(Path(config.data.cohort_dir) / COHORT), **inputs},
        "provenance": collect(),
    }


def _title(settings: dict[str, Any], name: str) -> str:
    title = TITLES.get(settings.get("source", ""), name)
    return title + ", labels shuffled" if settings.get("shuffle_labels") else title
