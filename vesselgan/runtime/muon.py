"""Muon: momentum, orthogonalised, for the weight matrices of a network's inside; Adam for all else (Jordan 2024).

A convolution's weight counts as one matrix, [out, in * taps]. It needs whole matrices, so no optimizer state or
gradient that ZeRO has cut.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of an odd polynomial (Jordan 2024) that brings singular values from 0 to 1 near 1, fast."""
NUM_ITERATIONS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """w -= lr * sqrt(max(1, rows / columns)) * orthogonalised(g + 0.95 (m - g)), m = 0.95 m + 0.05 g, for `matrices`.

    State by parameter: of a matrix `step` and `exp_avg` (m), of the others those of torch's Adam.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        matrix_lr: float,
        lr: float,
        betas: Sequence[float],
    ) -> None:
        """matrix_lr: of the matrices; lr, betas: Adam's, of the others."""
        groups = [
            {"params": list(others), "lr": lr, "betas": tuple(map(float, betas)), "eps": 1e-8, "fused": True},
            {"params": list(matrices), "lr": matrix_lr},
        ]
        super().__init__(groups, {"lr": lr})
        self.matrices = frozenset(self.param_groups[1]["params"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        others, matrices = self.param_groups
        adam_step(others, self._state_of)
        for parameter in matrices["params"]:
            if (gradient := parameter.grad) is None:
                continue
            state = self._state_of(parameter)
            state["step"] += 1
            state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
            matrix = gradient.lerp(state["exp_avg"], MOMENTUM).flatten(1)
            scale = max(1.0, len(matrix) / matrix.shape[1]) ** 0.5
            parameter.add_(orthogonalised(matrix).view(parameter.shape), alpha=-matrices["lr"] * scale)

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        names = ("exp_avg",) if parameter in self.matrices else ("exp_avg", "exp_avg_sq")
        return state_of(self, parameter, names)


def state_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, moments: Sequence[str]) -> dict[str, Tensor]:
    """`step` (float32 scalar) and the moments (the parameter's shape), made before its first step."""
    if not optimizer.state[parameter]:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            **{name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in moments},
        }
    return optimizer.state[parameter]


def adam_step(group: dict, state: Callable[[nn.Parameter], dict[str, Tensor]]) -> None:
    """torch's fused Adam for a group of parameters; without a first moment the gradient stands in its place."""
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters]
    states = [state(parameter) for parameter in parameters]
    beta1, beta2 = group["betas"]
    adam(
        parameters,
        gradients,
        [own.get("exp_avg", gradient) for own, gradient in zip(states, gradients, strict=True)],
        [own["exp_avg_sq"] for own in states],
        [],
        [own["step"] for own in states],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
    )


def orthogonalised(matrix_RC: Tensor) -> Tensor:
    """Roughly U V^T of the decomposition U S V^T: singular values above 0.003 of the norm become 0.68 to 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrix_RC if matrix_RC.shape[0] <= matrix_RC.shape[1] else matrix_RC.T
    x = x / (x.norm() + 1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix_RC.shape[0] <= matrix_RC.shape[1] else x.T
