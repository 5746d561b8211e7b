"""What a type cannot say of a setting: ranges and allowed words. Every rule names the key and what is allowed."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from vesselgan.config.private import check_accountable
from vesselgan.core.errors import UsageError

Rule = tuple[Callable[[Any], bool], str]

POSITIVE: Rule = (lambda v: v > 0, "must be above 0")
NOT_NEGATIVE: Rule = (lambda v: v >= 0, "must be 0 or more")
AT_LEAST_2: Rule = (lambda v: v >= 2, "must be 2 or more")
SHARE: Rule = (lambda v: 0 <= v <= 1, "must lie between 0 and 1")
SHARE_BELOW_1: Rule = (lambda v: 0 <= v < 1, "must lie between 0 and 1, below 1")
THREE_SIZES: Rule = (lambda v: len(v) == 3 and all(n > 0 for n in v), "must be three sizes above 0")


def one_of(*words: str) -> Rule:
    return (lambda v: v in words, "must be one of " + ", ".join(words))


PRECISIONS = one_of("fp32", "fp16", "bf16")
SPLITS = one_of("train", "validation", "test")
BETAS: Rule = (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "must be two rates from 0 to below 1")

MAX_PATCHES = 10**6
"""Of one subject: thousands of times the paper's, and a list that still fits into memory."""
FOLDER_NAME: Rule = (
    lambda v: v not in ("", ".", "..") and "/" not in v and v.isprintable() and v == v.strip(" -"),
    "must be a plain name of one folder",
)
FLOAT32: Rule = (lambda v: math.isfinite(v) and abs(v) < 3.4e38, "must be a finite number of single precision")

# Keyed by the end of the dotted name: `learning_rate` rules every learning rate.
RULES: dict[str, Rule] = {
    "data.name": FOLDER_NAME,
    "data.scaling": one_of("volume", "patch"),
    "data.cache_gib": NOT_NEGATIVE,
    "data.source": one_of("real", "synthetic", "both"),
    "data.label_threshold": SHARE,
    "prepare.patch_shape": THREE_SIZES,
    "prepare.grid_patches": (lambda v: set(v) <= {"gan", "unet"}, "must name gan, unet, both or none"),
    "prepare.num_vessel_patches_gan": (lambda v: 0 <= v <= MAX_PATCHES, f"must lie between 0 and {MAX_PATCHES}"),
    "prepare.num_vessel_patches_unet": (lambda v: 1 <= v <= MAX_PATCHES, f"must lie between 1 and {MAX_PATCHES}"),
    "prepare.nan_value": FLOAT32,
    "prepare.label_binarize_threshold": FLOAT32,
    "prepare.upper_percentile": (lambda v: 50 < v <= 100, "must lie above 50, at most 100"),
    "prepare.max_clipped_vessel_share": SHARE,
    "prepare.pairs_per_shard": POSITIVE,
    "split.train": NOT_NEGATIVE,
    "split.validation": NOT_NEGATIVE,
    "split.test": NOT_NEGATIVE,
    "split.seed": NOT_NEGATIVE,
    "preprocess.denoise_strength": POSITIVE,
    "preprocess.denoise_patch": (lambda v: v >= 3 and v % 2 == 1, "must be an odd number from 3 on"),
    "preprocess.denoise_distance": POSITIVE,
    "preprocess.bias_shrink": POSITIVE,
    "preprocess.bias_iterations": (lambda v: len(v) > 0 and all(n > 0 for n in v), "must be counts above 0"),
    "preprocess.spacing_mm": THREE_SIZES,
    "preprocess.mask": one_of("auto", "given", "bet", "deepbet", "none"),
    "preprocess.bet_fraction": SHARE,
    "target": one_of("loader", "prepare", "step", "segment", "metrics", "machine", "scaling", "private"),
    "threads": POSITIVE,
    "repeats": POSITIVE,
    "num_subjects": POSITIVE,
    "shape": THREE_SIZES,
    "variant.width": (lambda v: v >= 8 and v % 8 == 0, "must be a multiple of 8 (three halvings of channels)"),
    "variant.latent_size": POSITIVE,
    "variant.critic_norm": one_of("instance", "spectral"),
    "variant.precision": PRECISIONS,
    "variant.penalty_weight": NOT_NEGATIVE,
    "variant.penalty_reduction": one_of("sample", "batch"),
    "variant.n_critic": POSITIVE,
    "variant.learning_rate_critic": POSITIVE,
    "variant.learning_rate_generator": POSITIVE,
    "variant.betas": BETAS,
    "variant.generator_norm": one_of("batch", "group"),
    "dp.unit": one_of("patch", "patient"),
    "dp.noise_multiplier": POSITIVE,
    "dp.clip_norm": POSITIVE,
    "dp.delta": (lambda v: 0 < v < 1, "must lie between 0 and 1, such as 1e-5"),
    "dp.target_epsilon": POSITIVE,
    "dp.weight_clip": POSITIVE,
    "dp.noise_seed": NOT_NEGATIVE,
    "train.batch_size": POSITIVE,
    "train.batch_per_gpu": POSITIVE,
    "train.epochs": POSITIVE,
    "train.max_steps": POSITIVE,
    "train.max_minutes": POSITIVE,
    "train.log_every": POSITIVE,
    "train.image_every": POSITIVE,
    "train.checkpoint_every": POSITIVE,
    "train.keep_last": POSITIVE,
    "train.save_every_epochs": POSITIVE,
    "train.max_skipped_steps": POSITIVE,
    "train.ema_decay": (lambda v: 0 < v < 1, "must lie between 0 and 1, such as 0.995"),
    "train.num_workers": NOT_NEGATIVE,
    "unet.network": one_of("hilbert", "residual"),
    "unet.loss": one_of("dice", "dice_ce"),
    "unet.filters": (lambda v: len(v) >= 2 and all(n > 0 for n in v), "must be two or more channel counts above 0"),
    "unet.dropout": SHARE_BELOW_1,
    "unet.learning_rate": POSITIVE,
    "unet.betas": BETAS,
    "unet.batch_size": POSITIVE,
    "unet.batch_per_gpu": POSITIVE,
    "unet.max_steps": POSITIVE,
    "unet.validate_every": POSITIVE,
    "unet.log_every": POSITIVE,
    "unet.keep_last": POSITIVE,
    "unet.max_skipped_steps": POSITIVE,
    "unet.num_workers": NOT_NEGATIVE,
    "unet.precision": PRECISIONS,
    "unet.patience": POSITIVE,
    "runtime.device": one_of("auto", "cpu", "cuda"),
    "runtime.rank_timeout_minutes": POSITIVE,
    "runtime.max_restarts": POSITIVE,
    "num_patches": POSITIVE,
    "weights": one_of("standing", "running", "ema"),
    "threshold": SHARE,
    "overlap": SHARE_BELOW_1,
    "min_component_voxels": POSITIVE,
    "batch_size": POSITIVE,
    "split": SPLITS,
    "evaluate": one_of("segmentation", "threshold", "image", "label_threshold", "comparison", "memorisation"),
    "labels.thresholds": (lambda v: len(v) > 0 and all(0 < t <= 1 for t in v), "must be cuts above 0, at most 1"),
    "labels.num_narrowed": POSITIVE,
    "labels.max_patches": POSITIVE,
    "study": one_of("data_sources", "sweep"),
    "seeds": (lambda v: all(n >= 0 for n in v), "must be seeds of 0 or more"),
    "sweep.learning_rates": (lambda v: all(rate > 0 for rate in v), "must be above 0"),
    "sweep.batch_sizes": (lambda v: all(n > 0 for n in v), "must be above 0"),
    "image.reference": SPLITS,
    "image.extractor": one_of("medicalnet", "random"),
    "image.weights_sha256": (lambda v: len(v) == 64, "must be 64 hexadecimal digits"),
    "image.background": one_of("noise", "zero"),
    "image.num_clusters": AT_LEAST_2,
    "image.num_runs": POSITIVE,
    "image.num_angles": AT_LEAST_2,
    "image.max_patches": AT_LEAST_2,
    "image.num_seeds": POSITIVE,
    "image.seed": NOT_NEGATIVE,
    "image.num_pairs": POSITIVE,
    "image.max_label_patches": AT_LEAST_2,
    "image.batch_size": POSITIVE,
    "memorisation.reference": one_of("validation", "test"),
    "memorisation.override_privacy_gate": (lambda v: bool(v.strip()), "must be a reason in words"),
    "patch_shape": THREE_SIZES,
    "num_pairs": POSITIVE,
    "num_patients": POSITIVE,
    "device": one_of("cuda", "cpu"),
    "zero_stage": (lambda v: v in (0, 1, 2), "must be 0, 1 or 2"),
    "step_seconds": POSITIVE,
    "memory_gib": POSITIVE,
    "ranks": (lambda v: len(v) > 0 and all(n > 0 for n in v), "must be a list of counts above 0, such as [1,8]"),
    "phantom.num_subjects": POSITIVE,
    "phantom.seed": NOT_NEGATIVE,
    "phantom.shape": THREE_SIZES,
    "phantom.spacing_mm": THREE_SIZES,
    "phantom.slab_mm": POSITIVE,
    "phantom.bias": NOT_NEGATIVE,
    "phantom.noise": (lambda v: len(v) == 2 and 0 <= v[0] <= v[1], "must be two values from 0 on, the smaller first"),
    "phantom.point_spread_voxels": NOT_NEGATIVE,
    "stalled_minutes": POSITIVE,
    "min_free_gib": NOT_NEGATIVE,
    "purposes": (lambda v: bool(v) and set(v) <= {"gan", "unet"}, "must name gan, unet or both"),
}


def check(config: Any, prefix: str = "") -> None:
    """UsageError for the first value below `config` that breaks its rule; null is always allowed where the type is."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = prefix + field.name
        if dataclasses.is_dataclass(value):
            check(value, key + ".")
            if getattr(value, "dp", None) is not None:
                check_accountable(value)
            continue
        rule = RULES.get(".".join(key.split(".")[-2:]))
        if rule is not None and value is not None and not rule[0](value):
            raise UsageError(f"{key}={value}: {rule[1]}")
