"""Score synthetic patches against held-out real ones: image features, diversity, labels.

The reference is held out unless `image.reference=train` asks for the training split by name: scored against what it
learned from, a generator that copies would win.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vesselgan.config.schema import Evaluate
from vesselgan.core.errors import DataError, UsageError
from vesselgan.data.sampler import derangement
from vesselgan.evaluation.features import Extracted, Extractor, Preprocessing, features_of, open_extractor
from vesselgan.evaluation.reference import (
    check_overlap,
    check_trained_on,
    find_reference,
    like_training,
    training_shards,
)
from vesselgan.formats.shards import ShardSet, content_hash, intensities
from vesselgan.metrics import diversity
from vesselgan.metrics.feature_scores import Features, FeatureScoreSettings, score_features
from vesselgan.metrics.label_scores import compare_labels
from vesselgan.metrics.label_statistics import LabelStatistics, consistency, label_statistics, shift_label
from vesselgan.runtime.distributed import choose_device
from vesselgan.runtime.provenance import collect

FORMAT_VERSION = 1
DATA_RANGE = 255.0


def score_patches(config: Evaluate) -> dict[str, Any]:
    """The result of scoring `config.image.synthetic` against the cohort's real patches, for JSON.

    DataError: shards or weights missing, damaged or not fitting; a reference that holds training patches; a GAN that
    was trained on other shards than the cohort's.
    """
    settings = config.image
    if settings.synthetic is None:
        raise UsageError("evaluate=image needs image.synthetic=DIR, the folder that launch/generate.py wrote")
    synthetic, (reference, purpose) = ShardSet(settings.synthetic), find_reference(config, settings.reference)
    _check_sets(synthetic, reference)
    training, cache_dir = training_shards(config), Path(config.work_dir) / "features"
    trained_note = check_trained_on(synthetic, training) if training is not None else None
    is_asked = settings.reference == "train"
    overlap = "the training split, asked by name" if is_asked else check_overlap(reference, training, cache_dir)
    rows, kind_note = like_training(reference, training if purpose == "unet" else None, settings.seed)
    extractor = open_extractor(settings)
    device = choose_device(config.runtime.device, 0)
    unchecked = "" if extractor.is_checked else " (not checked: image.weights_sha256 is not given)"
    print(f"{extractor.title}, sha256 {extractor.sha256}{unchecked}, on {device}", flush=True)
    preprocessing = Preprocessing(settings.background, settings.seed, config.data.scaling)
    how = {"device": device, "batch_size": settings.batch_size, "cache_dir": cache_dir}
    extracted = [features_of(shards, extractor, preprocessing, **how) for shards in (reference, synthetic)]
    result = {
        **_head(config, reference, purpose, rows),
        "extractor": _extractor_facts(extractor, device),
        "preprocessing": {**vars(preprocessing), **_zero_facts(*extracted)},
        "training_overlap": overlap,
        **_feature_part(config, reference, rows, *extracted),
        "ms_ssim": _similarity_part(config, reference, rows, synthetic, device),
        "labels": _label_part(config, reference, rows, synthetic),
        "inputs": {
            "synthetic shards": content_hash(synthetic.folder),
            "reference shards": content_hash(reference.folder),
            "extractor": extractor.sha256,
        },
        "provenance": collect(),
    }
    result["notes"] += [*_copy_notes(*extracted), *(note for note in (kind_note, trained_note) if note)]
    result["synthetic"] = {"count": len(synthetic), **synthetic.manifest.extra}
    _tell(result)
    return result


def _check_sets(synthetic: ShardSet, reference: ShardSet) -> None:
    if synthetic.origin != "synthetic":
        raise UsageError(f"image.synthetic={synthetic.folder}: holds real patches; name what launch/generate.py wrote")
    if synthetic.patch_shape != reference.patch_shape:
        raise DataError(
            f"{synthetic.folder} has patches of {list(synthetic.patch_shape)} voxels, the reference "
            f"{reference.folder} of {list(reference.patch_shape)}; name the cohort that the GAN was trained on"
        )


def _head(config: Evaluate, reference: ShardSet, purpose: str, rows: np.ndarray) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "job": "image",
        "name": config.name,
        "cohort": config.data.name,
        "split": config.image.reference,
        "label_threshold": config.data.label_threshold,
        "reference": {
            "split": config.image.reference,
            "is_held_out": config.image.reference != "train",
            "purpose": purpose,
            "count": len(rows),
            "kinds": dict(sorted(Counter(reference.kind(int(i)) for i in rows).items())),
            "patients": len({reference.subject(int(i)) for i in rows}),
        },
    }


def _extractor_facts(extractor: Extractor, device: torch.device) -> dict[str, Any]:
    return {
        "title": extractor.title,
        "sha256": extractor.sha256,
        "is_checked": extractor.is_checked,
        "is_comparable": extractor.is_comparable,
        "device": device.type,
    }


def _zero_facts(reference: Extracted, synthetic: Extracted) -> dict[str, Any]:
    sides = {"reference": reference, "synthetic": synthetic}
    return {
        "zero_share": {side: extracted.zero_share for side, extracted in sides.items()},
        "num_constant": {side: extracted.num_constant for side, extracted in sides.items()},
        "num_copies": {side: extracted.num_copies for side, extracted in sides.items()},
    }


def _copy_notes(reference: Extracted, synthetic: Extracted) -> list[str]:
    """A set that repeats its patches is smaller than its n says."""
    sides = {"reference": reference, "synthetic": synthetic}
    return [
        f"{extracted.num_copies} of {len(extracted.features_NF)} {side} patches are copies of another one, voxel for "
        "voxel: n counts them all"
        for side, extracted in sides.items()
        if extracted.num_copies
    ]


def _feature_part(
    config: Evaluate, reference: ShardSet, rows: np.ndarray, real: Extracted, generated: Extracted
) -> dict[str, Any]:
    settings = config.image
    method = FeatureScoreSettings(
        num_clusters=settings.num_clusters,
        num_runs=settings.num_runs,
        num_angles=settings.num_angles,
        seeds=tuple(range(settings.seed, settings.seed + settings.num_seeds)),
        max_patches=settings.max_patches,
    )
    sides = (
        Features(real.features_NF[rows], tuple(reference.subject(int(i)) for i in rows)),
        Features(generated.features_NF, ("",) * len(generated.features_NF)),
    )
    scores = score_features(*sides, method)
    print(f"{scores['n']} patches on either side (of {len(rows)} real and {len(generated.features_NF)} synthetic), "
          f"{scores['num_patients']} patients", flush=True)  # fmt: skip
    return {"method": vars(method), **scores}


def _similarity_part(
    config: Evaluate, reference: ShardSet, rows: np.ndarray, synthetic: ShardSet, device: torch.device
) -> dict[str, Any]:
    """Mean MS-SSIM within either set, and how it was measured; null where no scale fits into the patch."""
    settings, scales = config.image, diversity.num_scales(reference.patch_shape)
    facts = {"num_scales": scales, "weights": list(diversity.scale_weights(scales)), "num_pairs": settings.num_pairs}
    if scales == 0:
        return {**facts, "real": None, "synthetic": None}

    def mean_of(shards: ShardSet, chosen: np.ndarray) -> float:
        def read(place: int) -> np.ndarray:
            stored_XYZ, _ = shards.stored_pair(int(chosen[place]), label_threshold=config.data.label_threshold)
            return intensities(stored_XYZ, config.data.scaling)

        return diversity.mean_similarity(
            read, len(chosen), num_pairs=settings.num_pairs, seed=settings.seed, data_range=DATA_RANGE, device=device
        )

    return {**facts, "real": mean_of(reference, rows), "synthetic": mean_of(synthetic, np.arange(len(synthetic)))}


def _label_part(config: Evaluate, reference: ShardSet, rows: np.ndarray, synthetic: ShardSet) -> dict[str, Any]:
    settings = config.image
    count = min(len(rows), len(synthetic), settings.max_label_patches or len(rows))
    source = np.random.default_rng(settings.seed)
    chosen = {
        "real": (reference, np.sort(source.choice(rows, count, replace=False))),
        "synthetic": (synthetic, np.sort(source.choice(len(synthetic), count, replace=False))),
    }
    measured: dict[str, list[LabelStatistics]] = {}
    controls = {}
    for side, (shards, numbers) in chosen.items():
        measured[side], controls[side] = measure_labels(shards, numbers, config, side)
    patients = [reference.subject(int(i)) for i in chosen["real"][1]]
    return {
        "n": count,
        "statistics": compare_labels(measured["real"], measured["synthetic"], patients, settings.seed),
        "consistency_controls": controls,
    }


def measure_labels(
    shards: ShardSet, numbers: np.ndarray, config: Evaluate, side: str
) -> tuple[list[LabelStatistics], dict[str, float | None]]:
    """Statistics of these patches, and the mean consistency with labels shifted by 2 voxels, and with another's."""
    measured: list[LabelStatistics] = []
    spoilt: dict[str, list[float]] = {"shifted": [], "shuffled": []}
    partner = derangement(len(numbers), config.image.seed)
    for place, number in enumerate(tqdm(numbers, unit="label", desc=f"{side} labels", disable=None)):
        reading = {"scaling": config.data.scaling, "label_threshold": config.data.label_threshold}
        image_XYZ, label_XYZ = shards.read_pair(int(number), **reading)
        foreign_XYZ = shards.label(int(numbers[partner[place]]), config.data.label_threshold)
        measured.append(label_statistics(image_XYZ, label_XYZ, shards.spacing_mm))
        for name, label in (("shifted", shift_label(label_XYZ)), ("shuffled", foreign_XYZ)):
            if (score := consistency(image_XYZ, label)) is not None:
                spoilt[name].append(score)
    return measured, {name: float(np.mean(values)) if values else None for name, values in spoilt.items()}


def _tell(result: dict[str, Any]) -> None:
    for name, facts in result["scores"].items():
        low_high = "" if facts["interval"] is None else " ({:.4f} to {:.4f})".format(*facts["interval"])
        floor = result["floor"]
        beside = "" if floor is None else (
            f"; at n={floor['n'][0]}: {floor['synthetic'][name]['mean']:.4f}, real against real "
            f"{floor['real'][name]['mean']:.4f}"
        )  # fmt: skip
        print(f"{result['name']}, {name} at n={result['n']}: {facts['mean']:.4f}{low_high}{beside}", flush=True)
    statistics = result["labels"]["statistics"]
    for name in ("vessel_fraction", "consistency"):
        real, made = (statistics[name][side]["mean"] for side in ("real", "synthetic"))
        means = "not defined" if real is None or made is None else f"{made:.4f}, real {real:.4f}"
        print(f"{result['name']}, {name}, labels cut at {result['label_threshold']:g}: {means}", flush=True)
    for note in [*result["notes"], *([] if result["extractor"]["is_comparable"] else [result["extractor"]["title"]])]:
        print(f"note: {note}", flush=True)
