"""The Wasserstein losses (Arjovsky 2017), on scores [N]."""

from torch import Tensor


def critic_loss(real_N: Tensor, fake_N: Tensor) -> Tensor:
    """mean critic(fake) - mean critic(real): what the critic minimises, without penalty."""
    return fake_N.mean() - real_N.mean()


def generator_loss(fake_N: Tensor) -> Tensor:
    """-mean critic(fake): what the generator minimises."""
    return -fake_N.mean()
