"""A measurement as lines of text."""

from collections.abc import Iterator
from typing import Any


def flatten(measurement: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value as text)."""
    for name, value in measurement.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, as_text(value)


def as_text(value: Any) -> str:
    """Numbers to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
