"""What a type cannot say of a setting: ranges and allowed words. Every rule names the key and what is allowed."""

import dataclasses
from collections.abc import Callable
from typing import Any

from vesselgan.errors import UsageError

Rule = tuple[Callable[[Any], bool], str]

POSITIVE: Rule = (lambda v: v > 0, "must be above 0")
NOT_NEGATIVE: Rule = (lambda v: v >= 0, "must be 0 or more")
SHARE: Rule = (lambda v: 0 <= v <= 1, "must lie between 0 and 1")
SHARE_BELOW_1: Rule = (lambda v: 0 <= v < 1, "must lie between 0 and 1, below 1")
THREE_SIZES: Rule = (lambda v: len(v) == 3 and all(n > 0 for n in v), "must be three sizes above 0")


def one_of(*words: str) -> Rule:
    return (lambda v: v in words, "must be one of " + ", ".join(words))


PRECISIONS = one_of("fp32", "fp16", "bf16")
SPLITS = one_of("train", "validation", "test")
BETAS: Rule = (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "must be two rates from 0 to below 1")

# Keyed by the end of the dotted name: `learning_rate` rules every learning rate.
RULES: dict[str, Rule] = {
    "data.scaling": one_of("volume", "patch"),
    "data.cache_gib": NOT_NEGATIVE,
    "data.source": one_of("real", "synthetic", "both"),
    "data.label_threshold": SHARE,
    "prepare.patch_shape": THREE_SIZES,
    "prepare.grid_patches": (lambda v: set(v) <= {"gan", "unet"}, "must name gan, unet, both or none"),
    "prepare.num_vessel_patches_gan": NOT_NEGATIVE,
    "prepare.num_vessel_patches_unet": POSITIVE,
    "prepare.upper_percentile": (lambda v: 50 < v <= 100, "must lie above 50, at most 100"),
    "prepare.max_clipped_vessel_share": SHARE,
    "prepare.pairs_per_shard": POSITIVE,
    "split.train": NOT_NEGATIVE,
    "split.validation": NOT_NEGATIVE,
    "split.test": NOT_NEGATIVE,
    "preprocess.denoise_strength": POSITIVE,
    "preprocess.denoise_patch": (lambda v: v >= 3 and v % 2 == 1, "must be an odd number from 3 on"),
    "preprocess.denoise_distance": POSITIVE,
    "preprocess.bias_shrink": POSITIVE,
    "preprocess.bias_iterations": (lambda v: len(v) > 0 and all(n > 0 for n in v), "must be counts above 0"),
    "preprocess.spacing_mm": THREE_SIZES,
    "preprocess.mask": one_of("auto", "given", "bet", "deepbet", "none"),
    "preprocess.bet_fraction": SHARE,
    "target": one_of("loader", "prepare"),
    "repeats": POSITIVE,
    "num_subjects": POSITIVE,
    "shape": THREE_SIZES,
    "variant.width": (lambda v: v >= 8 and v % 8 == 0, "must be a multiple of 8 (three halvings of channels)"),
    "variant.latent_size": POSITIVE,
    "variant.critic_norm": one_of("instance", "spectral"),
    "variant.precision": PRECISIONS,
    "variant.penalty_weight": NOT_NEGATIVE,
    "variant.penalty_form": one_of("sample", "batch"),
    "variant.n_critic": POSITIVE,
    "variant.learning_rate_critic": POSITIVE,
    "variant.learning_rate_generator": POSITIVE,
    "variant.betas": BETAS,
    "train.batch_size": POSITIVE,
    "train.batch_per_gpu": POSITIVE,
    "train.epochs": POSITIVE,
    "train.max_steps": POSITIVE,
    "train.max_minutes": POSITIVE,
    "train.log_every": POSITIVE,
    "train.picture_every": POSITIVE,
    "train.checkpoint_every": POSITIVE,
    "train.keep_last": POSITIVE,
    "train.ema_decay": (lambda v: 0 < v < 1, "must lie between 0 and 1, such as 0.995"),
    "train.num_workers": NOT_NEGATIVE,
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
    "unet.num_workers": NOT_NEGATIVE,
    "unet.precision": PRECISIONS,
    "unet.patience": POSITIVE,
    "runtime.device": one_of("auto", "cpu", "cuda"),
    "num_patches": POSITIVE,
    "weights": one_of("standing", "running", "ema"),
    "threshold": SHARE,
    "overlap": SHARE_BELOW_1,
    "batch_size": POSITIVE,
    "split": SPLITS,
    "evaluate": one_of("segmentation", "threshold"),
    "patch_shape": THREE_SIZES,
    "ranks": (lambda v: len(v) > 0 and all(n > 0 for n in v), "must be a list of counts above 0, such as [1,8]"),
    "phantom.num_subjects": POSITIVE,
    "phantom.shape": THREE_SIZES,
    "phantom.spacing_mm": THREE_SIZES,
    "purposes": (lambda v: bool(v) and set(v) <= {"gan", "unet"}, "must name gan, unet or both"),
}


def check(config: Any, prefix: str = "") -> None:
    """UsageError for the first value below `config` that breaks its rule; null is always allowed where the type is."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = prefix + field.name
        if dataclasses.is_dataclass(value):
            check(value, key + ".")
            continue
        rule = RULES.get(".".join(key.split(".")[-2:]))
        if rule is not None and value is not None and not rule[0](value):
            raise UsageError(f"{key}={value}: {rule[1]}")
