"""The gradient penalty of equation 1, per sample (Gulrajani 2017) or as the authors' code has it.

Shapes: N batch, C channel, X Y Z voxels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vesselgan.core.errors import UsageError

FORMS = ("sample", "batch")
# Inside the root: keeps the derivative finite where the critic is flat; a slope of 1 becomes 1 + 5e-13.
EPS = 1e-12
# Brings the gradient of a half critic, 1e-7 to 1e-4 a voxel, into half's normal range; 65536 would overflow.
INNER_SCALE = 1024.0


class Penalty(NamedTuple):
    """The penalty and what it was made of, all float32 scalars."""

    value: Tensor
    """What the critic's loss gains; carries the graph."""
    slope: Tensor
    """Mean norm of the critic's gradient; 1 is aimed at."""
    underflow: Tensor
    """Share of voxels whose gradient is exactly zero: in half, what was lost."""


InputGradient = Callable[[Tensor, float], Tensor]
"""(patches, scale) -> gradient of scale * sum(scores) by the patches, differentiable by the critic's weights."""


def by_autograd(critic: Callable[[Tensor], Tensor]) -> InputGradient:
    """The input gradient of any critic. One that can write down its own saves half of the work."""

    def input_gradient(x_NCXYZ: Tensor, scale: float) -> Tensor:
        x_NCXYZ = x_NCXYZ.detach().requires_grad_(True)
        return torch.autograd.grad(critic(x_NCXYZ).sum() * scale, x_NCXYZ, create_graph=True)[0]

    return input_gradient


def gradient_penalty(
    input_gradient: InputGradient,
    real_NCXYZ: Tensor,
    fake_NCXYZ: Tensor,
    *,
    epsilon: Tensor,
    weight: float,
    form: str = "sample",
    inner_scale: float = INNER_SCALE,
) -> Penalty:
    """weight * E[(|grad critic(x)|_2 - 1)^2] at x = epsilon * real + (1 - epsilon) * fake (Subramaniam 2022, eq. 1).

    epsilon: [N], drawn by the caller from U(0, 1). form="sample": one epsilon and one norm per sample; form="batch",
    the authors' code: epsilon[0] for all and one norm over the whole batch, so that the result depends on its size.
    Float32 whatever the critic's precision (float64 for float64 patches): the scores are multiplied by
    `inner_scale` before the inner gradient and the gradient divided by it in float32, since a voxel's gradient
    underflows in half, and its square all the more. Neither patch gets a gradient; the graph is kept for the caller's
    only backward.
    """
    if form not in FORMS:
        raise UsageError(f"variant.penalty_reduction={form}: one of {', '.join(FORMS)} is needed")
    dtype = torch.promote_types(torch.promote_types(real_NCXYZ.dtype, fake_NCXYZ.dtype), torch.float32)
    real, fake = real_NCXYZ.detach().to(dtype), fake_NCXYZ.detach().to(dtype)
    epsilon_N = epsilon.to(device=real.device, dtype=dtype)
    if form == "batch":
        epsilon_N = epsilon_N[:1].expand(len(real))
    scaled = input_gradient(torch.lerp(fake, real, epsilon_N.view(-1, 1, 1, 1, 1)), inner_scale)
    gradient_NF = (scaled.to(dtype) / inner_scale).flatten(1)
    if form == "batch":
        gradient_NF = gradient_NF.reshape(1, -1)
    norm_N = (gradient_NF.square().sum(1) + EPS).sqrt()
    underflow = (scaled.detach() == 0).float().mean()
    return Penalty(weight * (norm_N - 1).square().mean(), norm_N.detach().mean(), underflow)
