"""The hinge loss of a critic, on scores [N] (Lim and Ye 2017); the generator's is Wasserstein's."""

import torch.nn.functional as F
from torch import Tensor


def hinge_critic_loss(real_N: Tensor, fake_N: Tensor) -> Tensor:
    """mean max(0, 1 - critic(real)) + mean max(0, 1 + critic(fake)): beyond its margin a sample counts nothing."""
    return F.relu(1 - real_N).mean() + F.relu(1 + fake_N).mean()
