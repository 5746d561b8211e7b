"""All scores of one subject's segmentation, and their summary over subjects."""

import statistics
from dataclasses import asdict
from typing import Any

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.metrics.centreline import centreline_dice, count_components
from vesselgan.metrics.masks import as_mask, as_masks
from vesselgan.metrics.overlap import dice, precision, recall
from vesselgan.metrics.surface import distances

UNITS = {
    "dice": "1",
    "bavd_voxels": "voxel",
    "bavd_mm": "mm",
    "truth_to_predicted_voxels": "voxel",
    "predicted_to_truth_voxels": "voxel",
    "truth_to_predicted_mm": "mm",
    "predicted_to_truth_mm": "mm",
    "avd_voxels": "voxel",
    "avd_mm": "mm",
    "hd95_voxels": "voxel",
    "hd95_mm": "mm",
    "centreline_dice": "1",
    "component_error": "1",
    "precision": "1",
    "recall": "1",
    "false_positive_inside_mm3": "mm3",
    "false_positive_outside_mm3": "mm3",
}
REGIONS = ("all", "intracranial")
MASKED = ("false_positive_inside_mm3", "false_positive_outside_mm3")
"""Scores of the whole head that need the brain mask; only in region `all`."""

Entry = dict[str, Any]


def score(
    name: str,
    truth_XYZ: np.ndarray,
    predicted_XYZ: np.ndarray,
    mask_XYZ: np.ndarray | None,
    spacing_mm: tuple[float, float, float],
    *,
    regions: tuple[str, ...] = REGIONS,
) -> list[Entry]:
    """One entry per region; `intracranial` applies the brain mask to both sides and needs one. Masks: bool, or 0 and 1.

    With one empty side Dice, clDice, precision and recall are 0 and distances the volume's diagonal; with two, 1 and 0.
    """
    truth_XYZ, predicted_XYZ = as_masks(truth_XYZ, predicted_XYZ)
    if mask_XYZ is not None:
        mask_XYZ = as_mask(mask_XYZ, "brain mask")
        if mask_XYZ.shape != truth_XYZ.shape:
            raise DataError(
                f"brain mask of shape {mask_XYZ.shape}, truth of {truth_XYZ.shape}: bring them onto one grid"
            )
    entries = []
    for region in regions:
        if region == "all":
            entry = _score_region(truth_XYZ, predicted_XYZ, spacing_mm)
            if mask_XYZ is not None:
                false_positive = predicted_XYZ & ~truth_XYZ
                volumes_mm3 = [_volume_mm3(false_positive & side, spacing_mm) for side in (mask_XYZ, ~mask_XYZ)]
                entry |= dict(zip(MASKED, volumes_mm3, strict=True))
        elif mask_XYZ is not None:
            entry = _score_region(truth_XYZ & mask_XYZ, predicted_XYZ & mask_XYZ, spacing_mm)
        else:
            continue
        entries.append({"subject": name, "region": region, **entry})
    return entries


def _score_region(truth: np.ndarray, predicted: np.ndarray, spacing_mm: tuple[float, float, float]) -> Entry:
    entry: Entry = {"dice": dice(truth, predicted)}
    for unit, edges in (("voxels", None), ("mm", spacing_mm)):
        entry |= {f"{name}_{unit}": value for name, value in asdict(distances(truth, predicted, edges)).items()}
    num_components = {"truth_components": count_components(truth), "predicted_components": count_components(predicted)}
    return entry | {
        "centreline_dice": centreline_dice(truth, predicted),
        "component_error": abs(num_components["predicted_components"] - num_components["truth_components"]),
        "precision": precision(truth, predicted),
        "recall": recall(truth, predicted),
        "truth_voxels": int(np.count_nonzero(truth)),
        "predicted_voxels": int(np.count_nonzero(predicted)),
        **num_components,
    }


def _volume_mm3(mask_XYZ: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    return int(np.count_nonzero(mask_XYZ)) * float(np.prod(spacing_mm))


def is_empty(entry: Entry) -> bool:
    """Whether truth or prediction of this entry is empty, so that its scores are set by convention."""
    return 0 in (entry["truth_voxels"], entry["predicted_voxels"])


def summarise(entries: list[Entry]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Region -> metric -> mean, standard deviation (n - 1; null below two subjects), median and n.

    Scores in `MASKED` may be missing in a region; all others must be in every entry.
    """
    summary: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for region in dict.fromkeys(entry["region"] for entry in entries):
        members = [entry for entry in entries if entry["region"] == region]
        summary[region] = {}
        for metric in UNITS:
            if metric in MASKED and not any(metric in entry for entry in members):
                continue
            values = [entry[metric] for entry in members]
            summary[region][metric] = {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "median": statistics.median(values),
                "n": len(values),
            }
    return summary


def count_empty(entries: list[Entry]) -> dict[str, dict[str, int]]:
    """Region -> number of entries with an empty truth (`truth`) and with an empty prediction (`predicted`)."""
    return {
        region: {
            side: sum(entry["region"] == region and entry[f"{side}_voxels"] == 0 for entry in entries)
            for side in ("truth", "predicted")
        }
        for region in dict.fromkeys(entry["region"] for entry in entries)
    }
