"""Candidate thresholds for synthetic labels, chosen by how much their labels resemble the training labels.

The GAN's second channel is a score; a threshold makes a label of it. A good threshold gives as much vessel, in as
many connected components, as the training labels have. Only synthetic scores and training labels are read here; the
validation patches decide between the closest few (`vesselgan study`), and the test subjects are never used.
"""

import math
from typing import Any

import numpy as np

from vesselgan.config.schema import Evaluate
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.cohort import shards_dir
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.metrics.centreline import count_components


def sweep_thresholds(config: Evaluate) -> dict[str, Any]:
    """Returns every threshold of config.labels with its labels' statistics, and the closest ones.

    `distance` is |ln(vessel fraction / the training labels')| + |ln((1 + parts) / (1 + the training labels'))|, of
    means over labels.max_patches patches taken evenly from each set; null if no voxel reaches the threshold.
    """
    settings = config.labels
    if settings.synthetic is None:
        raise UsageError("evaluate=label_threshold needs labels.synthetic=DIR, which `vesselgan generate` wrote")
    synthetic = ShardSet(settings.synthetic)
    training = ShardSet(shards_dir(config.data.cohort_dir, "gan", "train"))
    if (synthetic.origin, training.origin) != ("synthetic", "real"):
        raise DataError(
            f"labels.synthetic={settings.synthetic} holds {synthetic.origin} patches and {training.folder} "
            f"{training.origin} ones; expected synthetic and real"
        )
    reference = label_means(training, [1.0], settings.max_patches)[0]
    if not reference["vessel_fraction"]:
        raise DataError(f"{training.folder}: its labels hold no vessel, so there is nothing to compare with")
    rows = label_means(synthetic, sorted(set(settings.thresholds)), settings.max_patches)
    for row in rows:
        row["distance"] = _distance(row, reference)
    reached = [row for row in rows if row["distance"] is not None]
    if not reached:
        raise DataError(
            f"{settings.synthetic}: no score reaches any of the thresholds {settings.thresholds}; the GAN makes no "
            "vessels, train it longer or take another checkpoint"
        )
    # Thresholds between which no score lies make one label, and would train the same U-Net.
    distinct = {(row["vessel_fraction"], row["num_parts"]): row for row in reversed(reached)}.values()
    closest = sorted(distinct, key=lambda row: (row["distance"], row["threshold"]))[: settings.num_narrowed]
    return {
        "job": "label_threshold",
        "name": config.name,
        "training": {key: reference[key] for key in ("vessel_fraction", "num_parts", "num_patches")},
        "thresholds": rows,
        "narrowed": [row["threshold"] for row in closest],
        "inputs": {"synthetic": content_hash(synthetic.folder), "training": content_hash(training.folder)},
    }


def label_means(shards: ShardSet, thresholds: list[float], num_patches: int) -> list[dict[str, Any]]:
    """Returns for each threshold the mean vessel fraction and number of components over evenly spaced patches."""
    indices = np.linspace(0, len(shards) - 1, min(num_patches, len(shards))).round().astype(int)
    totals = np.zeros((len(thresholds), 2))
    for index in indices:
        score_XYZ = shards.score(index) if shards.origin == "synthetic" else shards.label(index)
        for row, threshold in enumerate(thresholds):
            label_XYZ = score_XYZ >= threshold
            totals[row] += label_XYZ.mean(), count_components(label_XYZ)
    means = totals / len(indices)
    return [
        {"threshold": t, "vessel_fraction": float(fraction), "num_parts": float(count), "num_patches": len(indices)}
        for t, (fraction, count) in zip(thresholds, means, strict=True)
    ]


def _distance(row: dict[str, Any], reference: dict[str, Any]) -> float | None:
    if not row["vessel_fraction"]:
        return None
    ratio = (1 + row["num_parts"]) / (1 + reference["num_parts"])
    return abs(math.log(row["vessel_fraction"] / reference["vessel_fraction"])) + abs(math.log(ratio))
