"""The precision of a network on this device: torch's type, and whether the device computes in it."""

import torch

from vesselgan.config.training_schema import PRECISIONS
from vesselgan.models.blocks import compute_dtype


def torch_type(precision: str) -> torch.dtype:
    """Of weights, activations and gradients."""
    return getattr(torch, PRECISIONS[precision])


def is_emulated(precision: str, device: torch.device) -> bool:
    """Whether the layers compute in float32 and store `precision`."""
    dtype = torch_type(precision)
    return compute_dtype(torch.empty(0, dtype=dtype, device=device)) != dtype


def emulation_notice(precision: str, device: torch.device, *, program: str, key: str) -> str | None:
    """A line that says so and names a faster command; None where `precision` is not emulated.

    program: the command line so far; key: the setting of the precision.
    """
    if not is_emulated(precision, device):
        return None
    faster = next(kind for kind in ("bf16", "fp32") if not is_emulated(kind, device))
    return (
        f"{precision} is emulated on this {device.type}: stored in half, computed in float32; faster here: "
        f"{program} --deepspeed_config ds_{faster}.json {key}={faster}"
    )
