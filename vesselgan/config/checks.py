"""What a type cannot say of a setting: ranges and choices. Every rule names the key and what is allowed."""

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
ALL_POSITIVE: Rule = (lambda v: all(n > 0 for n in v), "must be above 0")
FLOAT32: Rule = (lambda v: math.isfinite(v) and abs(v) < 3.4e38, "must be a finite number of single precision")

MAX_PATCHES = 10**6
"""Of one subject: thousands of times the paper's, and a list that still fits into memory."""


def one_of(*choices: str) -> Rule:
    return (lambda v: v in choices, "must be one of " + ", ".join(choices))


SPLITS = one_of("train", "validation", "test")

# Keyed by the end of the dotted name, `*.` standing for any group.
_POSITIVE = """
    pairs_per_shard denoise_strength denoise_distance bias_shrink slab_mm num_subjects
    latent_size n_critic learning_rate learning_rate_critic learning_rate_generator
    noise_multiplier clip_norm target_epsilon weight_clip
    batch_size batch_per_gpu epochs max_steps max_minutes validate_every patience
    log_every image_every checkpoint_every keep_last save_every_epochs max_skipped_steps
    rank_timeout_minutes max_restarts num_patches num_pairs num_patients min_component_voxels
    num_narrowed num_runs num_seeds step_seconds memory_gib stalled_minutes threads repeats
"""
_NOT_NEGATIVE = "cache_gib seed noise_seed penalty_weight num_workers point_spread_voxels min_free_gib"
RULES: dict[str, Rule] = {
    **{f"*.{name}": POSITIVE for name in _POSITIVE.split()},
    **{f"*.{name}": NOT_NEGATIVE for name in _NOT_NEGATIVE.split()},
    **{f"*.{name}": THREE_SIZES for name in ("patch_shape", "shape", "spacing_mm")},
    **{f"*.{name}": SHARE for name in ("threshold", "label_threshold", "max_clipped_vessel_share", "bet_fraction")},
    **{f"image.{name}": AT_LEAST_2 for name in ("num_clusters", "num_angles", "max_patches", "max_label_patches")},
    "data.name": (
        lambda v: v not in ("", ".", "..") and "/" not in v and v.isprintable() and v == v.strip(" -"),
        "must be a plain name of one folder",
    ),
    "data.scaling": one_of("volume", "patch"),
    "data.source": one_of("real", "synthetic", "both"),
    "prepare.grid_patches": (lambda v: set(v) <= {"gan", "unet"}, "must name gan, unet, both or none"),
    "prepare.num_vessel_patches_gan": (lambda v: 0 <= v <= MAX_PATCHES, f"must lie between 0 and {MAX_PATCHES}"),
    "prepare.num_vessel_patches_unet": (lambda v: 1 <= v <= MAX_PATCHES, f"must lie between 1 and {MAX_PATCHES}"),
    "prepare.nan_value": FLOAT32,
    "prepare.label_binarize_threshold": FLOAT32,
    "prepare.upper_percentile": (lambda v: 50 < v <= 100, "must lie above 50, at most 100"),
    "split.train": NOT_NEGATIVE,
    "split.validation": NOT_NEGATIVE,
    "split.test": NOT_NEGATIVE,
    "purposes": (lambda v: bool(v) and set(v) <= {"gan", "unet"}, "must name gan, unet or both"),
    "preprocess.denoise_patch": (lambda v: v >= 3 and v % 2 == 1, "must be an odd number from 3 on"),
    "preprocess.bias_iterations": (lambda v: len(v) > 0 and all(n > 0 for n in v), "must be counts above 0"),
    "preprocess.mask": one_of("auto", "given", "bet", "deepbet", "none"),
    "phantom.bias": NOT_NEGATIVE,
    "phantom.noise": (lambda v: len(v) == 2 and 0 <= v[0] <= v[1], "must be two values from 0 on, the smaller first"),
    "*.precision": one_of("fp32", "fp16", "bf16"),
    "variant.width": (lambda v: v >= 8 and v % 8 == 0, "must be a multiple of 8 (three halvings of channels)"),
    "variant.critic_norm": one_of("instance", "spectral"),
    "variant.generator_norm": one_of("batch", "group"),
    "variant.penalty_reduction": one_of("sample", "batch"),
    "variant.betas": (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "must be two rates from 0 to below 1"),
    "dp.unit": one_of("patch", "patient"),
    "dp.delta": (lambda v: 0 < v < 1, "must lie between 0 and 1, such as 1e-5"),
    "train.ema_decay": (lambda v: 0 < v < 1, "must lie between 0 and 1, such as 0.995"),
    "unet.network": one_of("hilbert", "residual"),
    "unet.loss": one_of("dice", "dice_ce"),
    "unet.filters": (lambda v: len(v) >= 2 and all(n > 0 for n in v), "must be two or more channel counts above 0"),
    "unet.dropout": SHARE_BELOW_1,
    "runtime.device": one_of("auto", "cpu", "cuda"),
    "*.device": one_of("cuda", "cpu"),
    "weights": one_of("standing", "running", "ema"),
    "overlap": SHARE_BELOW_1,
    "split": SPLITS,
    "evaluate": one_of("segmentation", "threshold", "image", "label_threshold", "comparison", "memorisation"),
    "labels.thresholds": (lambda v: len(v) > 0 and all(0 < t <= 1 for t in v), "must be cuts above 0, at most 1"),
    "labels.max_patches": POSITIVE,
    "image.reference": SPLITS,
    "image.extractor": one_of("medicalnet", "random"),
    "image.weights_sha256": (lambda v: len(v) == 64, "must be 64 hexadecimal digits"),
    "image.background": one_of("noise", "zero"),
    "memorisation.reference": one_of("validation", "test"),
    "memorisation.override_privacy_gate": (lambda v: bool(v.strip()), "must be a reason in words"),
    "study": one_of("data_sources", "sweep"),
    "seeds": (lambda v: all(n >= 0 for n in v), "must be seeds of 0 or more"),
    "sweep.learning_rates": ALL_POSITIVE,
    "sweep.batch_sizes": ALL_POSITIVE,
    "zero_stage": (lambda v: v in (0, 1, 2), "must be 0, 1 or 2"),
    "ranks": (lambda v: len(v) > 0 and all(n > 0 for n in v), "must be a list of counts above 0, such as [1,8]"),
    "target": one_of("acceptance", "loader", "prepare", "step", "segment", "metrics", "machine", "scaling", "private"),
}


def rule_of(key: str) -> Rule | None:
    """The rule for a dotted key, if there is one."""
    *_, name = names = key.split(".")[-2:]
    return RULES.get(".".join(names), RULES.get(f"*.{name}"))


def check(config: Any, prefix: str = "") -> None:
    """Raises UsageError for the first value in `config` that breaks its rule; null is allowed where the type is."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = prefix + field.name
        if dataclasses.is_dataclass(value):
            check(value, key + ".")
            if getattr(value, "dp", None) is not None:
                check_accountable(value)
            continue
        rule = rule_of(key)
        if rule is not None and value is not None and not rule[0](value):
            raise UsageError(f"{key}={value}: {rule[1]}")
