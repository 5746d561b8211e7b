"""Candidate thresholds for synthetic labels, chosen by how much their labels resemble the training labels.

The GAN's second channel is a score; a threshold makes a label of it. Only synthetic scores and training labels are read
here; the validation patches decide between the closest few (`vesselgan study`), and the test subjects are never used.
"""

from typing import Any

from vesselgan.config.schema import Evaluate
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.cohort import shards_dir
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.metrics.label_likeness import evenly, label_means


def sweep_thresholds(config: Evaluate) -> dict[str, Any]:
    """Returns every threshold of config.labels with its labels' statistics, and the closest ones.

    Of means over labels.max_patches patches taken evenly from each set; `distance` is that of `LabelMeans`, null if no
    voxel reaches the threshold.
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
    indices = evenly(len(training), settings.max_patches)
    (reference,) = label_means((training.label(int(i)) for i in indices), [1.0])
    if not reference.vessel_fraction:
        raise DataError(f"{training.folder}: its labels hold no vessel, so there is nothing to compare with")
    thresholds = sorted(set(settings.thresholds))
    indices = evenly(len(synthetic), settings.max_patches)
    means = label_means((synthetic.score(int(i)) for i in indices), thresholds)
    rows: list[dict[str, Any]] = [
        {"threshold": threshold, **of_labels._asdict(), "distance": of_labels.distance(reference)}
        for threshold, of_labels in zip(thresholds, means, strict=True)
    ]
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
        "training": reference._asdict(),
        "thresholds": rows,
        "narrowed": [row["threshold"] for row in closest],
        "inputs": {"synthetic": content_hash(synthetic.folder), "training": content_hash(training.folder)},
    }
