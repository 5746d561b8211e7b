"""The training step as the paper's authors released it, restated plainly: the baseline of every ratio of the step.

Layers and order of operations are theirs, waste included: the generator's backward runs in the critic step and is
thrown away, the critic's weight gradients in the generator step likewise. Shapes: N batch, C channel, X Y Z voxels,
L latent.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator

INPUT_CHANNELS = 2


class AuthorsGenerator(nn.Module):
    """Linear, three times [upsampling, convolution, batch norm, ReLU], a convolution, tanh; all in torch's layers."""

    def __init__(self, patch_shape: tuple[int, int, int], width: int, latent_size: int) -> None:
        super().__init__()
        self.start_shape = (width, *(side // 8 for side in patch_shape))
        self.start = nn.Linear(latent_size, math.prod(self.start_shape))
        self.start_norm = nn.BatchNorm3d(width)
        channels = [width, width // 2, width // 4, width // 8]
        self.ups = nn.ModuleList(nn.Conv3d(before, after, 3, padding=1) for before, after in pairwise(channels))
        self.norms = nn.ModuleList(nn.BatchNorm3d(after) for after in channels[1:])
        self.last = nn.Conv3d(channels[-1], INPUT_CHANNELS, 3, padding=1)

    def forward(self, z_NL: Tensor) -> Tensor:
        x_NCXYZ = self.start_norm(self.start(z_NL).view(-1, *self.start_shape)).relu()
        for up, norm in zip(self.ups, self.norms, strict=True):
            x_NCXYZ = norm(up(nn.functional.interpolate(x_NCXYZ, scale_factor=2, mode="nearest"))).relu()
        return self.last(x_NCXYZ).tanh()


class AuthorsCritic(nn.Module):
    """Four times [convolution of stride 2, instance or spectral norm, leaky ReLU], a linear score."""

    def __init__(self, patch_shape: tuple[int, int, int], width: int, norm: str) -> None:
        super().__init__()
        channels = [INPUT_CHANNELS, width // 8, width // 4, width // 2, width]
        convolutions = [nn.Conv3d(before, after, 3, stride=2, padding=1) for before, after in pairwise(channels)]
        self.convolutions = nn.ModuleList(spectral_norm(c) if norm == "spectral" else c for c in convolutions)
        self.norms = nn.ModuleList(
            nn.InstanceNorm3d(after) if norm == "instance" else nn.Identity() for after in channels[1:]
        )
        self.score = nn.Linear(width * math.prod(side // 16 for side in patch_shape), 1)

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x_NCXYZ = nn.functional.leaky_relu(norm(convolution(x_NCXYZ)), 0.2)
        return self.score(x_NCXYZ.flatten(1)).squeeze(1)


@torch.no_grad()
def copy_weights(ours: Generator | Critic, theirs: AuthorsGenerator | AuthorsCritic) -> None:
    """Ours into theirs, the spectral norm's vectors too; the names of the layers are the same."""
    values = ours.state_dict()
    renamed = {"parametrizations.weight.0.u": "parametrizations.weight.0._u"}
    renamed |= {"parametrizations.weight.0.v": "parametrizations.weight.0._v"}
    for old, new in renamed.items():
        values = {key.replace(old, new): value for key, value in values.items()}
    values = {key.replace("num_batches", "num_batches_tracked"): value for key, value in values.items()}
    theirs.load_state_dict(values)


@dataclass
class AuthorsStep:
    """Both networks, their optimizers, and how precision is kept."""

    critic: nn.Module
    generator: nn.Module
    critic_optimizer: torch.optim.Optimizer
    generator_optimizer: torch.optim.Optimizer
    autocast: Callable[[], AbstractContextManager] = nullcontext
    scalers: tuple[torch.amp.GradScaler, torch.amp.GradScaler] | None = None
    """Critic's and generator's, in half."""

    def __call__(
        self, real_NCXYZ: Tensor, latents: tuple[Tensor, Tensor], epsilon: Tensor, *, penalty_weight: float
    ) -> tuple[Tensor, Tensor]:
        """One critic and one generator update; (critic loss with penalty, generator loss).

        `latents`: [N, L] for the critic's step and for the generator's; `epsilon`: one number for the batch.
        """
        self.critic_optimizer.zero_grad()
        with self.autocast():
            loss_real = -self.critic(real_NCXYZ).mean()
        self._scaled(loss_real, 0).backward(retain_graph=True)
        with self.autocast():
            fake_NCXYZ = self.generator(latents[0])
            loss_fake = self.critic(fake_NCXYZ.detach()).mean()
        self._scaled(loss_fake, 0).backward(retain_graph=True)
        with self.autocast():
            interpolated_NCXYZ = epsilon * real_NCXYZ + (1 - epsilon) * fake_NCXYZ
            scores_N = self.critic(interpolated_NCXYZ)
        (gradient_NCXYZ,) = torch.autograd.grad(
            self._scaled(scores_N.sum(), 0), interpolated_NCXYZ, create_graph=True, retain_graph=True
        )
        norm = (gradient_NCXYZ.float() if self.scalers else gradient_NCXYZ).norm(2) / self._scale(0)
        penalty = penalty_weight * (norm - 1).square()
        self._scaled(penalty, 0).backward()
        self._update(self.critic_optimizer, 0)

        self.generator_optimizer.zero_grad()
        with self.autocast():
            generator_loss = -self.critic(self.generator(latents[1])).mean()
        self._scaled(generator_loss, 1).backward()
        self._update(self.generator_optimizer, 1)
        return (loss_real + loss_fake + penalty).detach(), generator_loss.detach()

    def _scale(self, network: int) -> float:
        return self.scalers[network].get_scale() if self.scalers else 1.0

    def _scaled(self, loss: Tensor, network: int) -> Tensor:
        return self.scalers[network].scale(loss) if self.scalers else loss

    def _update(self, optimizer: torch.optim.Optimizer, network: int) -> None:
        if self.scalers is None:
            optimizer.step()
            return
        self.scalers[network].step(optimizer)
        self.scalers[network].update()
