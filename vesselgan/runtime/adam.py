"""The choice of an optimizer, and Adam with beta1 = 0 (the paper's) without the first moment, bit for bit torch's."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from vesselgan.runtime.muon import Muon, adam_step, state_of

BOTH_MOMENTS = ("exp_avg", "exp_avg_sq")
FIRST_MOMENT, SECOND_MOMENT = BOTH_MOMENTS[:1], BOTH_MOMENTS[1:]


def optimizer_for(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    betas: Sequence[float],
    matrices: Sequence[nn.Parameter] = (),
    muon_learning_rate: float | None = None,
) -> torch.optim.Optimizer:
    """Adam, fused (2.7 times the speed of the loop form on CPU), with as many moments as `betas` need.

    With `muon_learning_rate`, Muon for `matrices` and Adam for the others.
    """
    if muon_learning_rate is not None:
        ids = set(map(id, matrices))
        others = [parameter for parameter in parameters if id(parameter) not in ids]
        return Muon(matrices, others, matrix_lr=muon_learning_rate, lr=learning_rate, betas=betas)
    # Floats: an int decay rate raises in torch 2.13.
    beta1, beta2 = map(float, betas)
    if beta1 == 0:
        return AdamWithoutMomentum(parameters, lr=learning_rate, beta2=beta2)
    return torch.optim.Adam(parameters, lr=learning_rate, betas=(beta1, beta2), fused=True)


def num_moments(trainable: int, matrices: int, betas: Sequence[float]) -> int:
    """Numbers that the optimizer keeps for so many trained weights, `matrices` of them Muon's."""
    return matrices + len(BOTH_MOMENTS if betas[0] else SECOND_MOMENT) * (trainable - matrices)


def moment_names(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> tuple[str, ...]:
    """Names of the moments that the optimizer keeps of a parameter."""
    if isinstance(optimizer, Muon) and parameter in optimizer.matrices:
        return FIRST_MOMENT
    return SECOND_MOMENT if isinstance(optimizer, AdamWithoutMomentum) else BOTH_MOMENTS


class AdamWithoutMomentum(torch.optim.Optimizer):
    """p -= lr * g / (sqrt(v / (1 - beta2^t)) + eps), v = beta2 * v + (1 - beta2) * g^2 (Kingma 2015 with beta1 = 0).

    With beta1 = 0 the first moment equals the gradient, so torch's fused kernel gets the gradient in its place. This
    saves 0.54 GiB, and their reading and writing, for 145 million weights.
    State by parameter: `step` (float32 scalar) and `exp_avg_sq` (float32, the parameter's shape).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, beta2: float, eps: float = 1e-8) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.0, beta2), "eps": eps, "fused": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            adam_step(group, lambda parameter: state_of(self, parameter, SECOND_MOMENT))
