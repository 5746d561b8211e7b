"""The networks of a GAN's run, layer by layer in the order of their calls, for the paper's figure 2."""

from typing import Any

import torch
from torch import Tensor, nn

from vesselgan.config.schema import Variant
from vesselgan.models.critic import Critic
from vesselgan.models.variants import build_networks


def describe(variant: Variant, patch_shape: tuple[int, int, int]) -> dict[str, Any]:
    """{network: {"input": shape, "layers": [{"kind", "shape", "parameters", ...}], "parameters": sum}} for JSON.

    Both networks are built on the meta device and called once; a shape has no batch axis. "kind" is the class;
    convolutions also have their kernel, stride and whether their weight is spectrally normalised.
    """
    with torch.device("meta"):
        networks = build_networks(variant, patch_shape)
        return {
            "generator": _describe_network(networks["generator"], torch.empty(1, variant.latent_size)),
            "critic": _describe_network(networks["critic"], torch.empty(1, 2, *patch_shape)),
        }


@torch.no_grad()
def _describe_network(network: nn.Module, batch: Tensor) -> dict[str, Any]:
    layers: list[dict[str, Any]] = []
    for module in [module for module in network.modules() if _is_layer(module)]:
        module.register_forward_hook(
            lambda layer, _, output: layers.append(_describe_layer(layer, tuple(output.shape[1:])))
        )
    output = network.eval()(batch)
    if isinstance(network, Critic):  # its last layer is applied in float32, not called
        layers.append(_describe_layer(network.score, (1,)))
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    assert num_parameters == sum(layer["parameters"] for layer in layers), "a layer was not called"
    return {
        "input": list(batch.shape[1:]),
        "layers": layers,
        "output": list(output.shape[1:]) or [1],
        "parameters": num_parameters,
    }


def _is_layer(module: nn.Module) -> bool:
    """A layer has parameters of its own, or normalises, or activates; the parametrisation of a weight is none."""
    return isinstance(module, nn.Conv3d | nn.Linear | nn.LeakyReLU) or "Norm3d" in type(module).__name__


def _describe_layer(layer: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    description: dict[str, Any] = {
        "kind": type(layer).__name__.removeprefix("Parametrized"),
        "shape": list(shape),
        "parameters": sum(parameter.numel() for parameter in layer.parameters()),
    }
    if isinstance(layer, nn.Conv3d):
        is_spectral = hasattr(layer, "parametrizations")
        description |= {"kernel": list(layer.kernel_size), "stride": list(layer.stride), "is_spectral": is_spectral}
    return description
