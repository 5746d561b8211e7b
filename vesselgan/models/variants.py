"""The networks of a variant, from its settings."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from vesselgan.models.blocks import init_weights
from vesselgan.models.critic import Critic
from vesselgan.models.flow import FlowGenerator, init_flow_weights
from vesselgan.models.generator import Generator
from vesselgan.models.segmentation_critic import SegmentationCritic

LABEL, TISSUE = "label", "tissue map"
GIVEN: dict[str | None, tuple[str, ...]] = {None: (), "label": (LABEL,), "anatomy": (LABEL, TISSUE)}
"""variant.condition -> the channels of a patch that a generator is given."""


class Settings(Protocol):
    """What config.training_schema.Variant says of the networks."""

    width: int
    latent_size: int
    critic_norm: str | None
    generator_norm: str | None
    condition: str | None
    time_power: float
    flow: Any


def build_networks(variant: Settings, patch_shape: Sequence[int]) -> dict[str, nn.Module]:
    """`critic` and `generator`, or a flow's `generator` alone, for patches of so many voxels, not yet initialised."""
    if variant.critic_norm is None:
        return {"generator": build_generator(variant, patch_shape)}
    x, y, z = patch_shape
    if variant.condition is None:
        critic: nn.Module = Critic((x, y, z), variant.width, variant.critic_norm)
    else:
        critic = SegmentationCritic((x, y, z), variant.width, len(GIVEN[variant.condition]))
    return {"critic": critic, "generator": build_generator(variant, patch_shape)}


def build_generator(variant: Settings, patch_shape: Sequence[int]) -> Generator | FlowGenerator:
    """Samples from latents [N, network.latent_size]; not yet initialised."""
    x, y, z = patch_shape
    if variant.flow is not None:
        flow = variant.flow
        return FlowGenerator(
            (x, y, z),
            variant.width,
            has_position=flow.position,
            time_shift=flow.time_shift,
            num_steps=flow.num_steps,
            time_power=variant.time_power,
            guidance=flow.guidance,
            num_given=len(GIVEN[variant.condition]),
        )
    if variant.condition is not None:
        return FlowGenerator(
            (x, y, z),
            variant.width,
            has_position=True,
            time_shift=1.0,
            num_steps=1,
            guidance=0.0,
            num_given=len(GIVEN[variant.condition]),
        )
    assert variant.generator_norm is not None, "config.flow"
    return Generator((x, y, z), variant.width, variant.latent_size, variant.generator_norm)


def takes_tissue(network: nn.Module) -> bool:
    """Whether the patches that a network learns from, or scores, need a tissue map."""
    return isinstance(network, FlowGenerator | SegmentationCritic) and network.num_given > 1


def init_networks(networks: dict[str, nn.Module], seed: int) -> None:
    """Weights from `seed`, the same on every rank and device."""
    for offset, name in enumerate(("critic", "generator")):
        if name in networks:
            network = networks[name]
            init = init_flow_weights if isinstance(network, FlowGenerator) else init_weights
            init(network, seed + offset)
