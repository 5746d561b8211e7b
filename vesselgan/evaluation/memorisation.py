"""Memorisation audit: are synthetic patches nearer to the training patches than held-out real patches are?

Measures the distance of every synthetic and every held-out real patch to its nearest training patch, in any orientation
that augmentation may have shown (metrics.nearest_neighbours), and tests these distances (privacy.attacks.copies). The
gate opens only if the test has the power to find copies and finds none. It bounds copies alone; for everything else
there is differential privacy.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vesselgan.config.schema import Evaluate
from vesselgan.core.console import log
from vesselgan.core.errors import DataError, PrivacyError, UsageError
from vesselgan.evaluation.reference import (
    check_overlap,
    check_trained_on,
    find_reference,
    match_kinds,
    training_shards,
)
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.metrics.nearest_neighbours import nearest
from vesselgan.privacy.attacks import copies
from vesselgan.runtime.provenance import collect

DRAW_SEED = 990  # of the held-out patches that `match_kinds` draws
NUM_LISTED = 20  # pairs in the result's `nearest`
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)


def audit_memorisation(config: Evaluate) -> dict[str, Any]:
    """Returns the verdict on all patches of `config.memorisation.synthetic`, for JSON.

    Raises DataError if shards are missing, damaged or do not fit, if the generator had another training set, or if a
    patient is in both splits.
    """
    settings = config.memorisation
    if settings.synthetic is None:
        raise UsageError("evaluate=memorisation needs memorisation.synthetic=DIR, which launch/generate.py wrote")
    synthetic, training = ShardSet(settings.synthetic), training_shards(config)
    reference, purpose = find_reference(config, settings.reference)
    if training is None:
        raise DataError(f"{config.data.cohort_dir}: has no shards/gan/train; name the cohort that the GAN learned from")
    notes = _check_sets(synthetic, training, reference)
    overlap = check_overlap(reference, training, Path(config.work_dir) / "features")
    rows, kind_note = match_kinds(reference, training if purpose == "unet" else None, DRAW_SEED)
    notes += [kind_note] if kind_note else []
    result: dict[str, Any] = {
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
        notes.append("one held-out patient is nearer to the training patches than chance explains: a closed gate may "
                     "be a false alarm; look at the nearest pairs")  # fmt: skip
    _log_result(result)
    return result


def _measure(synthetic: ShardSet, reference: ShardSet, rows: np.ndarray, training: ShardSet) -> dict[str, Any]:
    """Returns the judgement with the distances behind it."""
    generated, held_out = not_constant(synthetic, range(len(synthetic))), not_constant(reference, rows)
    patients = [reference.subject(i) for i in held_out]
    patches = [(synthetic, i) for i in generated] + [(reference, i) for i in held_out]
    images = (shards.image(i) for shards, i in tqdm(patches, unit="patch", desc="nearest", disable=None))
    neighbours = [neighbour for neighbour in nearest(images, training, any_orientation=True) if neighbour is not None]
    assert len(neighbours) == len(patches)
    distance_N, held_out_M = np.split(np.array([neighbour.distance for neighbour in neighbours]), [len(generated)])
    return {
        **asdict(copies.judge(distance_N, held_out_M, patients)),
        "count": {
            "synthetic": len(generated),
            "held_out": len(held_out),
            "held_out_people": len(set(patients)),
            "held_out_kinds": dict(sorted(Counter(reference.kind(i) for i in held_out).items())),
            "training": len(training),
            "without_content": len(synthetic) + len(rows) - len(neighbours),
        },
        "distances": {"synthetic": _quantiles(distance_N), "held_out": _quantiles(held_out_M)},
        "nearest": [
            {"synthetic": generated[i], "training": neighbours[i].index, "distance": neighbours[i].distance}
            for i in np.argsort(distance_N, kind="stable")[:NUM_LISTED].tolist()
        ],
    }


def check_gate(config: Evaluate, result: dict[str, Any]) -> None:
    """Raises PrivacyError if memorisation.require_open is set and the gate is neither open nor overridden."""
    settings = config.memorisation
    if result["verdict"] == copies.OPEN or not settings.require_open:
        return
    if settings.override_privacy_gate is not None:
        log.info(f"gate not open, overridden: {settings.override_privacy_gate}")
        return
    raise PrivacyError(
        f"{settings.synthetic}: memorisation gate {result['verdict']}: {result['reason']}; do not share these patches, "
        "or state a reason: memorisation.override_privacy_gate=REASON"
    )


def not_constant(shards: ShardSet, indices: Sequence[int] | np.ndarray) -> list[int]:
    """Returns the patches that hold more than one value: air identifies nobody. Raises DataError if there are none."""
    kept = []
    for index in map(int, indices):
        stored_XYZ = shards.stored_image(index)
        if stored_XYZ.min() != stored_XYZ.max():
            kept.append(index)
    if not kept:
        raise DataError(f"{shards.folder}: every patch is of one value; check how they were generated")
    return kept


def _check_sets(synthetic: ShardSet, training: ShardSet, reference: ShardSet) -> list[str]:
    """Raises UsageError or DataError if the sets do not fit; returns notes on what cannot be checked."""
    if synthetic.origin != "synthetic":
        raise UsageError(
            f"memorisation.synthetic={synthetic.folder}: holds real patches; name a folder of launch/generate.py"
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


def _log_result(result: dict[str, Any]) -> None:
    count, noise, share = result["count"], result["most_noise"], result["rule"]["share"]
    reach = "" if noise is None else f" (copies with noise of up to {noise:.0%} of their SD lie below it)"
    lines = [
        f"{result['name']}: {count['synthetic']} synthetic and {count['held_out']} held-out patches of "
        f"{count['held_out_people']} patients against {count['training']} training patches",
        f"threshold {result['threshold']:.3f}{reach}; {result['below']} synthetic patches below it",
        f"copies: at most {result['share_at_most']:.2%} of the generator's patches (95 % confidence)",
        f"power: copies of {share:.0%} are found with probability {result['power']:.3f}",
    ]
    log.info("\n".join(lines))
    for note in result["notes"]:
        log.info(f"note: {note}")
    log.info(f"gate {result['verdict']}: {result['reason']}")
