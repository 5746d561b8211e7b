"""The gradient penalty of equation 1, per sample (Gulrajani 2017) or over the batch (the authors' code).

Shapes: N batch, C channel, X Y Z voxels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vesselgan.core.errors import UsageError

REDUCTIONS = ("sample", "batch")
# Under the root: keeps the derivative finite where the critic is flat. A norm of 1 becomes 1 + 5e-13.
EPS = 1e-12
# Lifts the gradient of a half critic, 1e-7 to 1e-4 per voxel, into half's normal range; 65536 would overflow.
INNER_SCALE = 1024.0


class Penalty(NamedTuple):
    """The penalty and what it is computed from; float32 scalars."""

    value: Tensor
    """The term of the critic's loss; carries the graph."""
    grad_norm: Tensor
    """Mean norm of the critic's gradient; the target is 1."""
    zero_fraction: Tensor
    """Fraction of voxels whose gradient is exactly zero: in half, what underflowed."""


InputGradient = Callable[[Tensor, float], Tensor]
"""(patches, scale) -> gradient of scale * sum(scores) by the patches, differentiable by the critic's weights."""


def by_autograd(critic: Callable[[Tensor], Tensor]) -> InputGradient:
    """The input gradient of any critic, for one without an `input_gradient` of its own."""

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
    reduction: str = "sample",
    inner_scale: float = INNER_SCALE,
) -> Penalty:
    """weight * E[(|grad critic(x)|_2 - 1)^2] at x = epsilon * real + (1 - epsilon) * fake (Subramaniam 2022, eq. 1).

    epsilon: [N], drawn from U(0, 1). reduction="sample": one epsilon and one norm per sample. reduction="batch" (the
    authors' code): epsilon[0] for all and one norm over the whole batch, so the result depends on its size.
    Float32 in every precision of the critic (float64 for float64 patches): a voxel's gradient underflows in half, so
    the scores are multiplied by `inner_scale` and the gradient is divided by it in float32. The patches get no
    gradient; the graph is kept for one backward.
    """
    if reduction not in REDUCTIONS:
        raise UsageError(f"variant.penalty_reduction={reduction}: choose one of {', '.join(REDUCTIONS)}")
    dtype = torch.promote_types(torch.promote_types(real_NCXYZ.dtype, fake_NCXYZ.dtype), torch.float32)
    real, fake = real_NCXYZ.detach().to(dtype), fake_NCXYZ.detach().to(dtype)
    epsilon_N = epsilon.to(device=real.device, dtype=dtype)
    if reduction == "batch":
        epsilon_N = epsilon_N[:1].expand(len(real))
    scaled_gradient = input_gradient(torch.lerp(fake, real, epsilon_N.view(-1, 1, 1, 1, 1)), inner_scale)
    gradient_NF = (scaled_gradient.to(dtype) / inner_scale).flatten(1)
    if reduction == "batch":
        gradient_NF = gradient_NF.reshape(1, -1)
    norm_N = (gradient_NF.square().sum(1) + EPS).sqrt()
    zero_fraction = (scaled_gradient.detach() == 0).float().mean()
    return Penalty(weight * (norm_N - 1).square().mean(), norm_N.detach().mean(), zero_fraction)
