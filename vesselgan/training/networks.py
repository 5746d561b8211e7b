"""The two networks of a variant."""

from collections.abc import Sequence

from vesselgan.config.schema import Variant
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator


def build_networks(variant: Variant, patch_shape: Sequence[int]) -> tuple[Critic, Generator]:
    """(critic, generator) for patches of so many voxels, not yet initialised."""
    x, y, z = patch_shape
    critic = Critic((x, y, z), variant.width, variant.critic_norm)
    return critic, Generator((x, y, z), variant.width, variant.latent_size, variant.generator_norm)
