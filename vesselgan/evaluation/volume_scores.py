"""Score segmented volumes against their labels, and find out what one global threshold would have reached.

A result holds per subject and region every score of vesselgan.metrics.scores, their summary, and hashes of
everything that went in. Regions: `all` vessels, and `intracranial`, where the brain mask is applied to both sides.

Nothing is chosen on the subjects that are scored: a threshold is fitted on validation subjects alone, and the job that
scores predictions takes none.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.config.schema import Evaluate
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import DataError, UsageError
from vesselgan.evaluation import error_maps
from vesselgan.formats.cohort import COHORT, Cohort, Subject, read_cohort
from vesselgan.formats.volumes import Volume, grid_difference, read_header, read_label, read_mask, scale_to_255
from vesselgan.metrics.scores import UNITS, Entry, count_empty, is_empty, score, summarise
from vesselgan.runtime.provenance import collect

FORMAT_VERSION = 1
LEVELS_PER_UNIT = 257  # the shards' quantisation: 65,536 levels from 0 to 255
TITLES = {"real": "U-Net on real", "synthetic": "U-Net on synthetic", "both": "U-Net on real and synthetic"}
THRESHOLD_TITLE = "Best global threshold"


def score_predictions(config: Evaluate) -> dict[str, Any]:
    """PREDICTIONS/<subject>.nii.gz against the label, for every subject of the split; error maps where asked.

    DataError for a missing prediction, label or mask, and for a volume that the U-Net has learned from.
    """
    cohort = read_cohort(config.data.cohort_dir)
    subjects = cohort.of_split(config.split)
    if config.predictions is None:
        raise UsageError("evaluate=segmentation needs predictions=DIR, the folder that launch/segment.py wrote")
    facts = _how_segmented(Path(config.predictions))
    learned_from = facts.pop("learned_from", None)
    overlap = check_unseen(learned_from, subjects, config)
    regions = regions_of(subjects)
    paths = {name: Path(config.predictions) / f"{name}.nii.gz" for name in subjects}
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        raise DataError(
            f"{config.predictions}: no prediction for {', '.join(missing)} (subject.nii.gz); segment split "
            f"{config.split} of cohort {cohort.name} into it first"
        )
    entries: list[Entry] = []
    inputs: dict[str, str] = {}
    for name, subject in subjects.items():
        truth_XYZ, mask_XYZ = read_truth(name, subject, needs_mask="intracranial" in regions)
        predicted_XYZ = _on_grid(name, paths[name], subject)
        entries += score_and_tell(name, truth_XYZ, predicted_XYZ, mask_XYZ, subject, regions=regions)
        if config.error_maps is not None:
            errors_XYZ = error_maps.error_map(truth_XYZ, predicted_XYZ)
            error_maps.write(Path(config.error_maps), name, errors_XYZ, subject.label, subject.spacing_mm)
        inputs |= hashes(name, {"prediction": paths[name], "label": subject.label, "mask": subject.mask})
    told = {"title": _title(facts, config.name), "threshold": facts.get("threshold"), "segmented_with": facts}
    told |= {"training_overlap": overlap, "gan": (learned_from or {}).get("gan")}
    return _result(config, cohort, entries, inputs, told)


def score_threshold(config: Evaluate) -> dict[str, Any]:
    """The best global threshold, fitted on validation subjects (config.fit_cohort's), on the subjects of another split.

    One on the 0..255 scale for each region. DataError for a missing label or mask.
    """
    if config.split == "validation":
        raise UsageError("split=validation: the threshold is fitted there; score it on another split")
    cohort = read_cohort(config.data.cohort_dir)
    subjects = cohort.of_split(config.split)
    fitting_dir = Path(config.fit_cohort or config.data.cohort_dir)
    fitting_cohort = read_cohort(fitting_dir)
    fitting = fitting_cohort.of_split("validation")
    _check_fitting(fitting, subjects)
    regions = tuple(region for region in regions_of(subjects) if region in regions_of(fitting))
    levels = fit_threshold(fitting, regions)
    entries: list[Entry] = []
    inputs: dict[str, str] = {}
    for name, subject in subjects.items():
        truth_XYZ, mask_XYZ = read_truth(name, subject, needs_mask="intracranial" in regions)
        level_XYZ = read_levels(name, subject)
        for region, level in levels.items():
            predicted_XYZ = level_XYZ >= level
            entries += score_and_tell(name, truth_XYZ, predicted_XYZ, mask_XYZ, subject, regions=(region,))
    for group, members in (("", subjects), ("fitted on ", fitting)):
        for name, subject in members.items():
            inputs |= hashes(group + name, {"image": subject.image, "label": subject.label, "mask": subject.mask})
    thresholds = {region: level / LEVELS_PER_UNIT for region, level in levels.items()}
    found = ", ".join(f"{region} {value:.1f}" for region, value in thresholds.items())
    people = f"{len(fitting)} validation subject{'s' * (len(fitting) != 1)}"
    print(f"best threshold on {people} (0..255): {found}", flush=True)
    return _result(
        config,
        cohort,
        entries,
        inputs,
        {
            "title": THRESHOLD_TITLE,
            "threshold": thresholds["all"],
            "thresholds": thresholds,
            "fitted_on": {"cohort": fitting_cohort.name, "split": "validation", "subjects": sorted(fitting)},
        },
    )


def regions_of(subjects: dict[str, Subject]) -> tuple[str, ...]:
    """`all`, and `intracranial` where there are masks; DataError where only some subjects have one: no mixed n."""
    without = [name for name, subject in subjects.items() if subject.mask is None]
    if not without:
        return ("all", "intracranial")
    if len(without) < len(subjects):
        raise DataError(
            f"no brain mask for {', '.join(without)} while others have one; make the missing masks and prepare the "
            "cohort again, or set data.layout.mask=null for all"
        )
    print("no brain masks in this cohort: intracranial scores are left out", flush=True)
    return ("all",)


def score_and_tell(
    name: str,
    truth_XYZ: np.ndarray,
    predicted_XYZ: np.ndarray,
    mask_XYZ: np.ndarray | None,
    subject: Subject,
    *,
    regions: tuple[str, ...],
) -> list[Entry]:
    """The subject's entries; an empty side, whose scores are defined and not measured, is told."""
    entries = score(name, truth_XYZ, predicted_XYZ, mask_XYZ, subject.spacing_mm, regions=regions)
    for entry in entries:
        if is_empty(entry):
            print(f"{name}, {entry['region']}: {entry['truth_voxels']} vessel voxels in the label, "
                  f"{entry['predicted_voxels']} predicted; an empty side scores Dice 0 and the volume's diagonal, two "
                  "empty ones 1 and 0", flush=True)  # fmt: skip
    return entries


def _check_fitting(fitting: dict[str, Subject], subjects: dict[str, Subject]) -> None:
    """DataError where a volume, by its voxels, would be scored by a threshold that was fitted on it."""
    fitted = {subject.image_sha256: name for name, subject in fitting.items()}
    if twins := [(name, fitted[s.image_sha256]) for name, s in subjects.items() if s.image_sha256 in fitted]:
        both = ", ".join(f"{name} is {other}" for name, other in twins)
        raise DataError(
            f"fit_cohort: volumes that are scored are, by their voxels, among those that the threshold is fitted on "
            f"({both}); take them out of one of the splits"
        )


def check_unseen(learned_from: dict[str, Any] | None, subjects: dict[str, Subject], config: Evaluate) -> str:
    """What was compared, in words. DataError where a scored volume, by its voxels, was learned from or chosen on.

    learned_from: as segmentation.training_provenance has it; None where the predictions do not say. What a checkpoint
    was chosen on may be scored where it is asked for by its name, split=validation.
    """
    if learned_from is None:
        overlap = "not checked: the predictions do not say what their U-Net learned from"
        print(f"training volumes among the scored ones: {overlap}", flush=True)
        return overlap
    seen = {"has learned from": learned_from["train"]}
    seen |= {} if config.split == "validation" else {"was chosen on": learned_from["validation"]}
    for how, hashes_seen in seen.items():
        if twins := [name for name, subject in subjects.items() if subject.image_sha256 in hashes_seen]:
            raise DataError(
                f"{config.predictions}: the U-Net {how} {', '.join(twins)} (the same voxels), which split "
                f"{config.split} of {config.data.cohort_dir} holds; score volumes that it has not seen"
            )
    count = sum(len(hashes_seen) for hashes_seen in seen.values())
    overlap = f"none: {len(subjects)} against {count} learned from or chosen on, by their voxels"
    if learned_from["unknown"]:
        overlap = f"not checked in part: {'; '.join(learned_from['unknown'])}; {overlap}"
    print(f"training volumes among the scored ones: {overlap}", flush=True)
    return overlap


def fit_threshold(subjects: dict[str, Subject], regions: tuple[str, ...]) -> dict[str, int]:
    """Region -> the level (see `read_levels`) of the highest mean Dice over the subjects; of equals the lowest."""
    total = {region: np.zeros(255 * LEVELS_PER_UNIT + 1) for region in regions}
    for name, subject in subjects.items():
        truth_XYZ, mask_XYZ = read_truth(name, subject, needs_mask="intracranial" in regions)
        level_XYZ = read_levels(name, subject)
        for region in regions:
            inside = np.ones_like(truth_XYZ) if region == "all" else mask_XYZ
            total[region] += dice_by_level(level_XYZ[inside], truth_XYZ[inside])
    return {region: int(np.argmax(sums)) for region, sums in total.items()}


def dice_by_level(level_V: np.ndarray, truth_V: np.ndarray) -> np.ndarray:
    """Dice of `level >= k` for every k = 0 .. 65535, from two histograms; two empty sides count 1."""
    num_levels = 255 * LEVELS_PER_UNIT + 1
    predicted = np.bincount(level_V, minlength=num_levels)[::-1].cumsum()[::-1]
    shared = np.bincount(level_V[truth_V], minlength=num_levels)[::-1].cumsum()[::-1]
    size = predicted + int(np.count_nonzero(truth_V))
    return np.where(size > 0, 2 * shared / np.maximum(size, 1), 1.0)


def read_levels(name: str, subject: Subject) -> np.ndarray:
    """The image scaled to 0..255 by the cohort's limits, in whole steps of 1/257, rounded down; uint16."""
    volume = subject.read_image()
    if volume.data_XYZ.shape != subject.shape:
        raise DataError(f"{name}: {subject.image} is not the image that the cohort was made of; prepare it again")
    return np.floor(scale_to_255(volume.data_XYZ, subject.limits) * np.float32(LEVELS_PER_UNIT)).astype(np.uint16)


def read_truth(name: str, subject: Subject, *, needs_mask: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """(vessel label, brain mask or None), bool, on one grid."""
    if subject.label is None:
        raise DataError(f"{name}: the cohort has no vessel label for it, so it cannot be scored; leave it out")
    truth_XYZ = subject.read_label().data_XYZ.astype(bool)
    return truth_XYZ, _on_grid(name, subject.mask, subject, read_mask) if needs_mask else None


def _on_grid(name: str, path: Path, subject: Subject, read: Callable[[Path], Volume] = read_label) -> np.ndarray:
    """A mask or a prediction as bool; DataError unless it lies on the label's grid."""
    if difference := grid_difference(read_header(subject.label), read_header(path)):
        raise DataError(f"{name}: {subject.label} and {path} are not on one grid: {difference}")
    return read(path).data_XYZ.astype(bool)


def hashes(name: str, files: dict[str, Path | None]) -> dict[str, str]:
    """`<subject> <role>` -> sha256, for the files that there are: no paths, which would name machines and people."""
    return {f"{name} {role}": sha256_of(path) for role, path in files.items() if path is not None}


def _result(
    config: Evaluate, cohort: Cohort, entries: list[Entry], inputs: dict[str, str], facts: dict[str, Any]
) -> dict[str, Any]:
    cohort_hash = sha256_of(Path(config.data.cohort_dir) / COHORT)
    return {
        "format_version": FORMAT_VERSION,
        "job": "segmentation",
        "name": config.name,
        "cohort": cohort.name,
        "split": config.split,
        **facts,
        "units": UNITS,
        "subjects": entries,
        "summary": summarise(entries),
        "empty": count_empty(entries),
        "inputs": {COHORT: cohort_hash, **inputs},
        "provenance": collect(),
    }


def _how_segmented(folder: Path) -> dict[str, Any]:
    """The settings in the record that launch/segment.py leaves; empty for predictions of another make."""
    try:
        return json.loads((folder / "segmentation.json").read_text())["settings"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}/segmentation.json: not readable ({error}); segment into a new folder") from error


def _title(facts: dict[str, Any], name: str) -> str:
    title = TITLES.get(facts.get("source"), name)
    return title + ", labels shuffled" if facts.get("shuffle_labels") else title
