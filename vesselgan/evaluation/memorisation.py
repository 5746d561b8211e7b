"""The audit before synthetic patches are shared: are they nearer to the training patches than other people's are?

Every synthetic patch and every held-out real one gets the distance to its nearest training patch, in any of the turns
that training may have shown (metrics.nearest_neighbours); privacy.attacks.copies judges by these numbers. The gate
opens only where copies would have been found. It says nothing of what is not a copy: for that there is differential
privacy.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vesselgan.config.schema import Evaluate
from vesselgan.core.errors import DataError, PrivacyError, UsageError
from vesselgan.evaluation.reference import (
    check_overlap,
    check_trained_on,
    find_reference,
    like_training,
    training_shards,
)
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.metrics.nearest_neighbours import nearest
from vesselgan.privacy.attacks import copies
from vesselgan.runtime.provenance import collect

FORMAT_VERSION = 1
DRAW_SEED = 990  # of the held-out patches, where they are mixed like the training ones
NUM_LISTED = 20
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)


def audit_copies(config: Evaluate) -> dict[str, Any]:
    """The verdict on all patches of `config.memorisation.synthetic`, for JSON.

    DataError: shards missing, damaged or not fitting; another training set than the generator's; people in both splits.
    """
    settings = config.memorisation
    if settings.synthetic is None:
        raise UsageError("evaluate=memorisation needs memorisation.synthetic=DIR, which launch/generate.py wrote")
    synthetic, training = ShardSet(settings.synthetic), training_shards(config)
    reference, purpose = find_reference(config, settings.reference)
    if training is None:
        raise DataError(f"{config.data.cohort_dir}: has no shards/gan/train, so there is nothing to have been copied")
    notes = _check_sets(synthetic, training, reference)
    overlap = check_overlap(reference, training, Path(config.work_dir) / "features")
    rows, kind_note = like_training(reference, training if purpose == "unet" else None, DRAW_SEED)
    notes += [kind_note] if kind_note else []
    result = {
        "format_version": FORMAT_VERSION,
        "job": "memorisation",
        "name": config.name,
        "cohort": config.data.name,
        "split": settings.reference,
        **_measure(synthetic, reference, rows, training),
        "rule": {name.lower(): getattr(copies, name) for name in ("SIGNIFICANCE", "SHARE", "LEAST_POWER", "VERBATIM")},
        "training_overlap": overlap,
        "notes": notes,
        "override_privacy_gate": settings.override_privacy_gate,
        "synthetic": {"count": len(synthetic), **synthetic.manifest.extra},
        "inputs": {
            "synthetic shards": content_hash(synthetic.folder),
            "reference shards": content_hash(reference.folder),
            "training shards": content_hash(training.folder),
        },
        "provenance": collect(),
    }
    if result["is_one_odd"]:
        notes.append("one held-out person is nearer to the training patches than chance explains beside the others: "
                     "a closed gate may be a false alarm; look at the nearest pairs")  # fmt: skip
    _tell(result)
    return result


def _measure(synthetic: ShardSet, reference: ShardSet, rows: np.ndarray, training: ShardSet) -> dict[str, Any]:
    """The judgement, and the distances that it rests on."""
    made, held_out = with_content(synthetic, range(len(synthetic))), with_content(reference, rows)
    patients = [reference.subject(i) for i in held_out]
    pairs = [(synthetic, i) for i in made] + [(reference, i) for i in held_out]
    images = (shards.image_XYZ(i) for shards, i in tqdm(pairs, unit="patch", desc="nearest", disable=None))
    found = [neighbour for neighbour in nearest(images, training, any_orientation=True) if neighbour is not None]
    assert len(found) == len(pairs)
    distance_N, held_out_M = np.split(np.array([neighbour.distance for neighbour in found]), [len(made)])
    return {
        **asdict(copies.judge(distance_N, held_out_M, patients)),
        "count": {
            "synthetic": len(made),
            "held_out": len(held_out),
            "held_out_people": len(set(patients)),
            "held_out_kinds": dict(sorted(Counter(reference.kind(i) for i in held_out).items())),
            "training": len(training),
            "without_content": len(synthetic) + len(rows) - len(found),
        },
        "distances": {"synthetic": _quantiles(distance_N), "held_out": _quantiles(held_out_M)},
        "nearest": [
            {"synthetic": made[place], "training": found[place].index, "distance": found[place].distance}
            for place in np.argsort(distance_N, kind="stable")[:NUM_LISTED].tolist()
        ],
    }


def stop_unless_open(config: Evaluate, result: dict[str, Any]) -> None:
    """PrivacyError where the gate is asked for, not open and not overridden; once the result is written."""
    settings = config.memorisation
    if result["verdict"] == copies.OPEN or not settings.require_open:
        return
    if settings.override_privacy_gate is not None:
        print(f"gate not open, overridden: {settings.override_privacy_gate}", flush=True)
        return
    raise PrivacyError(
        f"{settings.synthetic}: memorisation gate {result['verdict']}: {result['reason']}; do not share these patches, "
        "or say why they may be: memorisation.override_privacy_gate=REASON"
    )


def with_content(shards: ShardSet, numbers: Sequence[int] | np.ndarray) -> list[int]:
    """Those of the patches that hold more than one value; one of air alone is everybody's. DataError without any."""
    kept = []
    for number in map(int, numbers):
        stored_XYZ, _ = shards.stored_pair(number, label_threshold=0.5)
        if stored_XYZ.min() != stored_XYZ.max():
            kept.append(number)
    if not kept:
        raise DataError(f"{shards.folder}: every patch is of one value; check what made them")
    return kept


def _check_sets(synthetic: ShardSet, training: ShardSet, reference: ShardSet) -> list[str]:
    """What cannot be checked, in words."""
    if synthetic.origin != "synthetic":
        raise UsageError(
            f"memorisation.synthetic={synthetic.folder}: holds real patches; name what launch/generate.py wrote"
        )
    for real in (training, reference):
        if real.patch_shape != synthetic.patch_shape:
            raise DataError(
                f"{synthetic.folder} has patches of {list(synthetic.patch_shape)} voxels, {real.folder} of "
                f"{list(real.patch_shape)}; name the cohort that the GAN was trained on"
            )
    note = check_trained_on(synthetic, training)
    return [note] if note else []


def _quantiles(distances: np.ndarray) -> dict[str, float]:
    values = np.quantile(distances, QUANTILES).tolist()
    return {f"{quantile:g}": value for quantile, value in zip(QUANTILES, values, strict=True)}


def _tell(result: dict[str, Any]) -> None:
    count = result["count"]
    print(f"{result['name']}: {count['synthetic']} synthetic patches against {count['training']} training patches, "
          f"beside {count['held_out']} held-out ones of {count['held_out_people']} people", flush=True)  # fmt: skip
    noise = result["most_noise"]
    reach = "" if noise is None else f" (copies lie below it under noise of up to {noise:.0%} of their deviation)"
    print(f"threshold {result['threshold']:.3f}{reach}; {result['below']} below it", flush=True)
    print(f"copies: at most {result['share_at_most']:.2%} of what this generator makes (95 % confidence)", flush=True)
    share = result["rule"]["share"]
    print(f"power: copies of {share:.0%} are found with probability {result['power']:.3f}", flush=True)
    for note in result["notes"]:
        print(f"note: {note}", flush=True)
    print(f"gate {result['verdict']}: {result['reason']}", flush=True)
