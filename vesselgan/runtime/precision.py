"""The precision of a network on this device: torch's type, and whether DeepSpeed supports it."""

import torch

from vesselgan.config.training_schema import PRECISIONS
from vesselgan.core.errors import ResourceError
from vesselgan.runtime.distributed import World


def torch_type(precision: str) -> torch.dtype:
    """Of weights, activations and gradients."""
    return getattr(torch, PRECISIONS[precision])


def check_precision(precision: str, world: World, *, program: str, key: str) -> None:
    """ResourceError, with the commands that run here, if DeepSpeed does not support `precision`; after `start`.

    program: the command line so far; key: the setting of the precision.
    """
    supported = [kind for kind in ("fp16", "bf16", "fp32") if not half_is_missing(kind)]
    if precision not in supported:
        commands = "".join(f"\n    {program} --deepspeed_config ds_{kind}.json {key}={kind}" for kind in supported)
        raise ResourceError(
            f"this {world.device.type} has no {precision} that DeepSpeed supports; what would run here:{commands}"
        )


def half_is_missing(precision: str) -> bool:
    """Whether DeepSpeed does not support `precision` on this accelerator; after `start`."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if precision == "fp16":
        return not accelerator.is_fp16_supported()
    return precision == "bf16" and not accelerator.is_bf16_supported()
