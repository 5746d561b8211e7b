"""What a type cannot say of a setting: ranges and choices, and when it is read. A rule stands beside its field."""

import dataclasses
from collections.abc import Callable
from typing import Any

from vesselgan.config.flow import check_networks
from vesselgan.config.private import check_accountable
from vesselgan.core.errors import UsageError

Rule = dict[str, tuple[Callable[[Any], bool], str]]
"""Metadata of a dataclass field; several are joined by |."""


def rule(is_allowed: Callable[[Any], bool], message: str) -> Rule:
    """message: what is allowed."""
    return {"rule": (is_allowed, message)}


def read_if(is_read: Callable[[Any], bool], condition: str) -> Rule:
    """The field, or the group, is read where `is_read` of the command's configuration is true: with `condition`."""
    return {"read_if": (is_read, condition)}


def one_of(*choices: str) -> Rule:
    return rule(lambda v: v in choices, "must be one of " + ", ".join(choices))


POSITIVE = rule(lambda v: v > 0, "must be above 0")
NOT_NEGATIVE = rule(lambda v: v >= 0, "must be 0 or more")
AT_LEAST_2 = rule(lambda v: v >= 2, "must be 2 or more")
SHARE = rule(lambda v: 0 <= v <= 1, "must lie between 0 and 1")
THRESHOLD = rule(lambda v: 0 < v <= 1, "must lie above 0, at most 1: from a score of 0 on everything would be vessel")
SHARE_BELOW_1 = rule(lambda v: 0 <= v < 1, "must lie between 0 and 1, below 1")
THREE_SIZES = rule(lambda v: len(v) == 3 and all(n > 0 for n in v), "must be three sizes above 0")
ALL_POSITIVE = rule(lambda v: all(n > 0 for n in v), "must be above 0")
SPLITS = one_of("train", "validation", "test")
DEVICE = one_of("cuda", "cpu")
WEIGHTS = one_of("standing", "running", "ema")
EXTRACTOR = one_of("medicalnet", "random")
SHA256 = rule(lambda v: len(v) == 64, "must be 64 hexadecimal digits")

SCALE = rule(lambda v: 1e-6 <= v <= 1e6, "must lie between 1e-6 and 1e6")
"""Of what noise or weights are measured by: far from where single precision rounds them to 0 or infinity."""

MAX_PATCHES = 10**6
"""Of one subject: thousands of times the paper's, and a list that still fits into memory."""


def check(config: Any, prefix: str = "") -> None:
    """Raises UsageError for the first value in `config` that breaks its rule; null is allowed where the type is.

    No setting is an empty text: a folder would be the working directory.
    """
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            check(value, key + ".")
            if hasattr(value, "flow"):
                check_networks(value)
            if getattr(value, "dp", None) is not None:
                check_accountable(value)
        for number in value if isinstance(value, list) else [value]:
            if number == "":
                raise UsageError(f"{key} is empty; leave it out, or set the variable that it comes from")
            if not _is_bounded(number):
                raise UsageError(f"{key}={value}: must be finite, and 0 or within single precision (1.2e-38 to 3.4e38)")
        if value is not None and "rule" in field.metadata:
            is_allowed, message = field.metadata["rule"]
            if not is_allowed(value):
                raise UsageError(f"{key}={value}: {message}")


def unread(config: Any, key: str) -> str | None:
    """The condition that fails where `config` makes its command pass over the setting `key`; None where it is read."""
    holder = config
    for name in key.split("."):
        fields = {field.name: field for field in dataclasses.fields(holder)} if dataclasses.is_dataclass(holder) else {}
        if name not in fields:
            return None
        is_read, condition = fields[name].metadata.get("read_if", (None, ""))
        if is_read is not None and not is_read(config):
            return str(condition)
        holder = getattr(holder, name)
    return None


def _is_bounded(value: Any) -> bool:
    """Whether a number can be computed with: of 64 bits, or of single precision and not subnormal. True for others."""
    if isinstance(value, float):
        return value == 0 or 1.2e-38 <= abs(value) <= 3.4e38
    return not isinstance(value, int) or abs(value) < 2**63
