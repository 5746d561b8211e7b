"""Scores synthetic patches against held-out real ones: image features, diversity, labels.

The reference is held out, unless `image.reference=train` names the training split: against its own training patches a
generator that copies would win.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vesselgan.config.schema import Evaluate
from vesselgan.core.console import log
from vesselgan.core.errors import DataError, UsageError
from vesselgan.data.sampler import derangement
from vesselgan.evaluation.features import Extracted, Preprocessing, features_of, open_extractor
from vesselgan.evaluation.reference import check_overlap, check_trained_on, find_reference, match_kinds
from vesselgan.formats.cohort import Cohort, training_shards
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.metrics import diversity
from vesselgan.metrics.feature_scores import Features, FeatureScoreSettings, score_features
from vesselgan.metrics.label_scores import compare_labels
from vesselgan.metrics.label_statistics import LabelStatistics, consistency, label_statistics, shift_label
from vesselgan.runtime.distributed import choose_device
from vesselgan.runtime.provenance import collect

DATA_RANGE = 255.0


def score_patches(config: Evaluate) -> dict[str, Any]:
    """Returns the scores of `config.image.synthetic` against the cohort's real patches, for JSON.

    Raises DataError if shards or weights are missing, damaged or do not fit, if the reference holds training patches,
    or if the GAN was trained on other shards than the cohort's.
    """
    settings, cohort_dir = config.image, config.data.cohort_dir
    if settings.synthetic is None:
        raise UsageError("evaluate=image needs image.synthetic=DIR, the folder that `vesselgan generate` wrote")
    synthetic, (reference, purpose) = ShardSet(settings.synthetic), find_reference(cohort_dir, settings.reference)
    _check_sets(synthetic, reference)
    config = _with_label_threshold(config, synthetic)
    training, cache_dir = training_shards(cohort_dir), Path(config.work_dir) / "features"
    trained_note = check_trained_on(synthetic.folder, synthetic.manifest.extra, training)
    if settings.reference == "train":
        overlap = "the training split, asked by name"
    else:
        overlap = check_overlap(reference, training, cache_dir)
    rows, kind_note = match_kinds(reference, training if purpose == "unet" else None, settings.seed)
    extractor = open_extractor(settings.extractor, settings.weights, settings.weights_sha256, settings.seed)
    device = choose_device(config.runtime.device, 0)
    unchecked = "" if extractor.is_checked else " (not checked: image.weights_sha256 is not set)"
    log.info(f"{extractor.title}, sha256 {extractor.sha256}{unchecked}, on {device}")
    preprocessing = Preprocessing(settings.background, settings.seed, config.data.scaling)
    real, generated = (
        features_of(
            shards, extractor, preprocessing, device=device, batch_size=settings.batch_size, cache_dir=cache_dir
        )
        for shards in (reference, synthetic)
    )
    result = {
        **_header(config, reference, purpose, rows),
        "extractor": {**extractor.record, "is_comparable": extractor.is_comparable, "device": device.type},
        "preprocessing": {**vars(preprocessing), **_background_counts(real, generated)},
        "training_overlap": overlap,
        **_feature_scores(config, reference, rows, real, generated),
        "ms_ssim": _ms_ssim(config, reference, rows, synthetic, device),
        "labels": _label_scores(config, reference, rows, synthetic),
        "inputs": {
            "synthetic shards": content_hash(synthetic.folder),
            "reference shards": content_hash(reference.folder),
            "extractor": extractor.sha256,
        },
        "provenance": collect(),
    }
    result["notes"] += [*_duplicate_notes(real, generated), *(note for note in (kind_note, trained_note) if note)]
    result["synthetic"] = {"count": len(synthetic), **synthetic.manifest.extra}
    _log_result(result)
    return result


def _with_label_threshold(config: Evaluate, synthetic: ShardSet) -> Evaluate:
    """`config` with the threshold that the manifest recommends, unless it has its own."""
    if config.data.label_threshold is not None:
        return config
    if synthetic.label_threshold is None:
        raise DataError(f"{synthetic.folder}: its manifest recommends no label threshold; set data.label_threshold")
    return replace(config, data=replace(config.data, label_threshold=synthetic.label_threshold))


def _check_sets(synthetic: ShardSet, reference: ShardSet) -> None:
    if synthetic.origin != "synthetic":
        raise UsageError(f"image.synthetic={synthetic.folder}: holds real patches; name one that was generated")
    if synthetic.patch_shape != reference.patch_shape:
        raise DataError(
            f"{synthetic.folder} has patches of {list(synthetic.patch_shape)} voxels, the reference "
            f"{reference.folder} of {list(reference.patch_shape)}; name the cohort that the GAN was trained on"
        )


def _header(config: Evaluate, reference: ShardSet, purpose: str, rows: np.ndarray) -> dict[str, Any]:
    return {
        "job": "image",
        "name": config.name,
        "cohort": Cohort.name_in(config.data.cohort_dir, config.data.name),
        "split": config.image.reference,
        "label_threshold": config.data.label_threshold,
        "reference": {
            "split": config.image.reference,
            "is_held_out": config.image.reference != "train",
            "purpose": purpose,
            "count": len(rows),
            "kinds": dict(sorted(Counter(reference.kind(int(i)) for i in rows).items())),
            "patients": len({reference.patient(int(i)) for i in rows}),
        },
    }


def _background_counts(reference: Extracted, synthetic: Extracted) -> dict[str, Any]:
    return {
        name: {"reference": getattr(reference, name), "synthetic": getattr(synthetic, name)}
        for name in ("zero_share", "num_constant", "num_duplicates")
    }


def _duplicate_notes(reference: Extracted, synthetic: Extracted) -> list[str]:
    return [
        f"{extracted.num_duplicates} of {len(extracted.features_NF)} {side} patches are copies of another one, voxel "
        "for voxel: n counts them all"
        for side, extracted in (("reference", reference), ("synthetic", synthetic))
        if extracted.num_duplicates
    ]


def _feature_scores(
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
    scores = score_features(
        Features(real.features_NF[rows], tuple(reference.patient(int(i)) for i in rows)),
        Features(generated.features_NF, ("",) * len(generated.features_NF)),
        method,
    )
    log.info(f"{scores['n']} patches on either side (of {len(rows)} real and {len(generated.features_NF)} synthetic), "
          f"{scores['num_patients']} patients")  # fmt: skip
    return {"method": vars(method), **scores}


def _ms_ssim(
    config: Evaluate, reference: ShardSet, rows: np.ndarray, synthetic: ShardSet, device: torch.device
) -> dict[str, Any]:
    """Mean MS-SSIM within each set, with its settings; null if no scale fits into the patch."""
    settings, scales = config.image, diversity.num_scales(reference.patch_shape)
    method = {"num_scales": scales, "weights": list(diversity.scale_weights(scales)), "num_pairs": settings.num_pairs}
    if scales == 0:
        return {**method, "real": None, "synthetic": None}

    def mean_of(shards: ShardSet, indices: np.ndarray) -> float:
        def read(i: int) -> np.ndarray:
            return shards.image(indices[i], config.data.scaling)

        return diversity.mean_similarity(
            read, len(indices), num_pairs=settings.num_pairs, seed=settings.seed, data_range=DATA_RANGE, device=device
        )

    return {**method, "real": mean_of(reference, rows), "synthetic": mean_of(synthetic, np.arange(len(synthetic)))}


def _label_scores(config: Evaluate, reference: ShardSet, rows: np.ndarray, synthetic: ShardSet) -> dict[str, Any]:
    settings = config.image
    count = min(len(rows), len(synthetic), settings.max_label_patches or len(rows))
    rng = np.random.default_rng(settings.seed)
    real_indices = np.sort(rng.choice(rows, count, replace=False))
    synthetic_indices = np.sort(rng.choice(len(synthetic), count, replace=False))
    real, real_controls = measure_labels(reference, real_indices, config, "real")
    generated, generated_controls = measure_labels(synthetic, synthetic_indices, config, "synthetic")
    patients = [reference.patient(int(i)) for i in real_indices]
    return {
        "n": count,
        "statistics": compare_labels(real, generated, patients, settings.seed),
        "consistency_controls": {"real": real_controls, "synthetic": generated_controls},
    }


def measure_labels(
    shards: ShardSet, indices: np.ndarray, config: Evaluate, side: str
) -> tuple[list[LabelStatistics], dict[str, float | None]]:
    """Returns (statistics per patch, mean consistency of two controls).

    The controls are labels shifted by 2 voxels, and labels of another patch.
    """
    statistics: list[LabelStatistics] = []
    controls: dict[str, list[float]] = {"shifted": [], "shuffled": []}
    partner = derangement(len(indices), config.image.seed)
    threshold = config.data.label_threshold
    for i, index in enumerate(tqdm(indices, unit="label", desc=f"{side} labels", disable=None)):
        image_XYZ, label_XYZ = shards.pair(index, threshold, scaling=config.data.scaling)
        foreign_XYZ = shards.label(indices[partner[i]], threshold)
        statistics.append(label_statistics(image_XYZ, label_XYZ, shards.spacing_mm))
        for name, label in (("shifted", shift_label(label_XYZ)), ("shuffled", foreign_XYZ)):
            if (score := consistency(image_XYZ, label)) is not None:
                controls[name].append(score)
    return statistics, {name: float(np.mean(scores)) if scores else None for name, scores in controls.items()}


def _log_result(result: dict[str, Any]) -> None:
    floor = result["floor"]
    for name, score in result["scores"].items():
        line = f"{result['name']}, {name} at n={result['n']}: {score['mean']:.4f}"
        if score["interval"] is not None:
            line += " ({:.4f} to {:.4f})".format(*score["interval"])
        if floor is not None:
            line += f"; at n={floor['n'][0]}: {floor['synthetic'][name]['mean']:.4f}"
            line += f", real against real {floor['real'][name]['mean']:.4f}"
        log.info(line)
    statistics = result["labels"]["statistics"]
    for name in ("vessel_fraction", "consistency"):
        real, generated = (statistics[name][side]["mean"] for side in ("real", "synthetic"))
        means = "not defined" if real is None or generated is None else f"{generated:.4f}, real {real:.4f}"
        log.info(f"{result['name']}, {name}, label threshold {result['label_threshold']:g}: {means}")
    for note in [*result["notes"], *([] if result["extractor"]["is_comparable"] else [result["extractor"]["title"]])]:
        log.info(f"note: {note}")
