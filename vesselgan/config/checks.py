"""What a type cannot say of a setting: ranges and choices. A rule stands beside its field and says what is allowed."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from vesselgan.config.private import check_accountable
from vesselgan.core.errors import UsageError

Rule = dict[str, tuple[Callable[[Any], bool], str]]
"""Metadata of a dataclass field."""


def rule(is_allowed: Callable[[Any], bool], message: str) -> Rule:
    """message: what is allowed."""
    return {"rule": (is_allowed, message)}


def one_of(*choices: str) -> Rule:
    return rule(lambda v: v in choices, "must be one of " + ", ".join(choices))


POSITIVE = rule(lambda v: v > 0, "must be above 0")
NOT_NEGATIVE = rule(lambda v: v >= 0, "must be 0 or more")
AT_LEAST_2 = rule(lambda v: v >= 2, "must be 2 or more")
SHARE = rule(lambda v: 0 <= v <= 1, "must lie between 0 and 1")
SHARE_BELOW_1 = rule(lambda v: 0 <= v < 1, "must lie between 0 and 1, below 1")
THREE_SIZES = rule(lambda v: len(v) == 3 and all(n > 0 for n in v), "must be three sizes above 0")
ALL_POSITIVE = rule(lambda v: all(n > 0 for n in v), "must be above 0")
FLOAT32 = rule(lambda v: math.isfinite(v) and abs(v) < 3.4e38, "must be a finite number of single precision")
SPLITS = one_of("train", "validation", "test")
DEVICE = one_of("cuda", "cpu")
WEIGHTS = one_of("standing", "running", "ema")
EXTRACTOR = one_of("medicalnet", "random")
SHA256 = rule(lambda v: len(v) == 64, "must be 64 hexadecimal digits")

MAX_PATCHES = 10**6
"""Of one subject: thousands of times the paper's, and a list that still fits into memory."""


def check(config: Any, prefix: str = "") -> None:
    """Raises UsageError for the first value in `config` that breaks its rule; null is allowed where the type is."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            check(value, key + ".")
            if getattr(value, "dp", None) is not None:
                check_accountable(value)
        elif value is not None and "rule" in field.metadata:
            is_allowed, message = field.metadata["rule"]
            if not is_allowed(value):
                raise UsageError(f"{key}={value}: {message}")
