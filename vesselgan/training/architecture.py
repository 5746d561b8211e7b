"""The networks of a run, layer by layer as they are called, for whoever draws them (the paper's figure 2)."""

from typing import Any

import torch
from torch import Tensor, nn

from vesselgan.config.schema import Variant
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator

FILE = "architecture.json"


def describe(variant: Variant, patch_shape: tuple[int, int, int]) -> dict[str, Any]:
    """{player: {"input": shape, "layers": [{"kind", "shape", "parameters", ...}], "parameters": sum}} for JSON.

    Both players are built without storage and called once; a shape has no batch axis. "kind" is the class; convolutions
    tell kernel, stride and whether their weight is spectrally normalised.
    """
    with torch.device("meta"):
        players: dict[str, tuple[nn.Module, Tensor]] = {
            "generator": (
                Generator(patch_shape, variant.width, variant.latent_size, variant.generator_norm),
                torch.empty(1, variant.latent_size),
            ),
            "critic": (Critic(patch_shape, variant.width, variant.critic_norm), torch.empty(1, 2, *patch_shape)),
        }
    return {name: _called(module, given) for name, (module, given) in players.items()}


@torch.no_grad()
def _called(module: nn.Module, given: Tensor) -> dict[str, Any]:
    layers: list[dict[str, Any]] = []
    parts = [part for part in module.modules() if _is_layer(part)]
    for part in parts:
        part.register_forward_hook(lambda part, _, output: layers.append(_facts(part, tuple(output.shape[1:]))))
    result = module.eval()(given)
    if isinstance(module, Critic):  # its last layer is applied in float32, not called
        layers.append(_facts(module.score, (1,)))
    total = sum(parameter.numel() for parameter in module.parameters())
    assert total == sum(layer["parameters"] for layer in layers), "a layer was not called, or has parameters of no part"
    return {
        "input": list(given.shape[1:]),
        "layers": layers,
        "output": list(result.shape[1:]) or [1],
        "parameters": total,
    }


def _is_layer(part: nn.Module) -> bool:
    """A layer is what has parameters of its own, or normalises; not the parametrisation of a weight."""
    return isinstance(part, nn.Conv3d | nn.Linear | nn.LeakyReLU) or "Norm3d" in type(part).__name__


def _facts(part: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    kind = type(part).__name__.removeprefix("Parametrized")
    facts: dict[str, Any] = {"kind": kind, "shape": list(shape)}
    facts["parameters"] = sum(parameter.numel() for parameter in part.parameters())
    if isinstance(part, nn.Conv3d):
        is_spectral = hasattr(part, "parametrizations")
        facts |= {"kernel": list(part.kernel_size), "stride": list(part.stride), "is_spectral": is_spectral}
    return facts
