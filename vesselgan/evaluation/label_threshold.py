"""Where a synthetic label should begin: candidate thresholds narrowed by what their labels look like.

The GAN's second channel is a score; a threshold makes a label of it. A threshold whose labels hold as much vessel, in
as many parts, as the training labels do is a good one. This reads synthetic scores and training labels and nothing
else: the validation patches decide between the best few (launch/study.py), the test subjects have no say.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.config.schema import Evaluate
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.metrics.centreline import count_components

FORMAT_VERSION = 1


def sweep_thresholds(config: Evaluate) -> dict[str, Any]:
    """Every threshold of config.labels with its labels' statistics, and the closest ones.

    `distance` is |ln(vessel fraction / the training labels')| + |ln((1 + parts) / (1 + the training labels'))|, both
    means over labels.max_patches patches taken evenly from each set; null where no voxel reaches the threshold.
    """
    asked = config.labels
    if asked.synthetic is None:
        raise UsageError(
            "evaluate=label_threshold needs labels.synthetic=DIR, the shards that launch/generate.py wrote"
        )
    synthetic, training = (
        ShardSet(folder) for folder in (asked.synthetic, Path(config.data.cohort_dir) / "shards/gan/train")
    )
    if (synthetic.origin, training.origin) != ("synthetic", "real"):
        raise DataError(
            f"{asked.synthetic} holds {synthetic.origin} and {training.folder} {training.origin} patches; synthetic "
            "and real ones belong there"
        )
    real = label_facts(training, [0.5], asked.max_patches)[0]
    if not real["vessel_fraction"]:
        raise DataError(f"{training.folder}: its labels hold no vessel, so there is nothing to compare with")
    rows = label_facts(synthetic, sorted(set(asked.thresholds)), asked.max_patches)
    for row in rows:
        row["distance"] = _distance(row, real)
    reached = [row for row in rows if row["distance"] is not None]
    if not reached:
        raise DataError(
            f"{asked.synthetic}: no score reaches any of the thresholds {asked.thresholds}; the GAN makes no "
            "vessels, train it longer or take another checkpoint"
        )
    closest = sorted(reached, key=lambda row: (row["distance"], row["threshold"]))[: asked.num_narrowed]
    return {
        "format_version": FORMAT_VERSION,
        "job": "label_threshold",
        "name": config.name,
        "training": {key: real[key] for key in ("vessel_fraction", "num_parts", "num_patches")},
        "thresholds": rows,
        "narrowed": [row["threshold"] for row in closest],
        "inputs": {"synthetic": content_hash(synthetic.folder), "training": content_hash(training.folder)},
    }


def label_facts(shards: ShardSet, thresholds: list[float], num_patches: int) -> list[dict[str, Any]]:
    """For each threshold the mean vessel fraction and number of connected parts over patches taken evenly."""
    chosen = np.linspace(0, len(shards) - 1, min(num_patches, len(shards))).round().astype(int)
    totals = np.zeros((len(thresholds), 2))
    for index in chosen:
        record = shards.record(int(index))
        level = record.label_XYZ.astype(float) if record.score_XYZ is None else record.score_XYZ.astype(np.float32)
        for row, threshold in enumerate(thresholds):
            label = level >= threshold
            totals[row] += label.mean(), count_components(label)
    means = totals / len(chosen)
    return [
        {"threshold": threshold, "vessel_fraction": float(f), "num_parts": float(c), "num_patches": len(chosen)}
        for threshold, (f, c) in zip(thresholds, means, strict=True)
    ]


def _distance(row: dict[str, Any], real: dict[str, Any]) -> float | None:
    if not row["vessel_fraction"]:
        return None
    parts = (1 + row["num_parts"]) / (1 + real["num_parts"])
    return abs(math.log(row["vessel_fraction"] / real["vessel_fraction"])) + abs(math.log(parts))
