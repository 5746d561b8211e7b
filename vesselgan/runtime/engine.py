"""One network in its DeepSpeed engine, with the few methods that a training loop needs.

    loss = f(engine.module(x)); engine.backward(loss); engine.step()

A step with a loss or gradient that is not finite is skipped on every rank and in every precision, and counted.
Call `engine.module(x)`, never the DeepSpeed engine's own forward: with two networks and a gradient penalty that path
loses gradients (measured). The loop freezes the other network with `set_trainable`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vesselgan.runtime.adam import moment_names, optimizer_for
from vesselgan.runtime.distributed import World, minimum_over_ranks
from vesselgan.runtime.nonfinite import NonFiniteCounter


class Engine:
    """A network with its optimizer, loss scaler and gradient reduction."""

    def __init__(self, name: str, deepspeed_engine: Any, parameter_names: dict[str, nn.Parameter]) -> None:
        self.name = name
        self.deepspeed = deepspeed_engine
        self.parameters = parameter_names
        """Trained parameters by name."""
        self.skips = NonFiniteCounter()
        self._is_loss_finite = torch.ones((), dtype=torch.bool)
        self._norm: float | Tensor = 0.0

    @property
    def module(self) -> nn.Module:
        return self.deepspeed.module

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return next(iter(self.parameters.values())).dtype

    @property
    def device(self) -> torch.device:
        return self.deepspeed.device

    def backward(self, loss: Tensor) -> None:
        """Scaled backward of one micro-batch's mean loss (accumulation is divided out)."""
        is_finite = loss.detach().isfinite()
        self._is_loss_finite = self._is_loss_finite.to(loss.device) & is_finite
        # A NaN loss may have a finite gradient. Multiplied by NaN, the check of the gradients sees it on every rank.
        self.deepspeed.backward(loss * torch.where(is_finite, 1.0, torch.nan))

    def step(self) -> bool:
        """Reduce over ranks and update at an accumulation boundary; whether an update was applied.

        False before the boundary, and if a loss or gradient of any rank was not finite.
        """
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()
            return False
        is_at_floor = self.scaler is None or self.loss_scale <= getattr(self.scaler, "min_scale", self.loss_scale)
        if self.is_partitioned:
            self.deepspeed.step()
            is_applied = self.deepspeed.was_step_applied()
            self._norm = self.deepspeed.get_global_grad_norm()
        else:
            is_applied = self._step_if_finite()
        if is_applied:
            self.skips.reset()
        else:
            is_loss_finite = bool(minimum_over_ranks(self._is_loss_finite.float()))
            self.skips.count(is_loss_finite=is_loss_finite, is_at_floor=is_at_floor)
        self._is_loss_finite = torch.ones((), dtype=torch.bool)
        return is_applied

    def _step_if_finite(self) -> bool:
        """DeepSpeed's step without ZeRO, which lacks the check; the gradients are reduced over ranks already."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients)
        is_finite = bool(self._norm.isfinite())
        if not is_finite:
            self.deepspeed.skipped_steps += 1
            for parameter in self.parameters.values():
                parameter.grad = None
        self.deepspeed.step()
        return is_finite

    @property
    def gradient_norm(self) -> Tensor:
        """L2 norm of the gradient of the last update, over all parameters and the global batch."""
        return torch.as_tensor(self._norm, dtype=torch.float32, device=self.device)

    @property
    def micro_batches(self) -> int:
        """Backward calls per update."""
        return self.deepspeed.gradient_accumulation_steps()

    @property
    def loss_scale(self) -> float:
        scaler = self.scaler
        return float(scaler.cur_scale) if scaler is not None else 1.0

    @property
    def scaler(self) -> Any | None:
        """DeepSpeed's loss scaler; None without ZeRO or without half precision."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return scaler if self.dtype == torch.float16 else None

    @property
    def skipped_steps(self) -> int:
        return int(self.deepspeed.skipped_steps)

    @property
    def counters(self) -> Any:
        """The holder of global_steps, skipped_steps and micro_steps."""
        return self.deepspeed

    @property
    def is_partitioned(self) -> bool:
        """Whether ZeRO keeps float32 masters and moments in flat partitions."""
        return self.deepspeed.zero_optimization()

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """Adam or Muon."""
        return self.deepspeed.optimizer.optimizer if self.is_partitioned else self.deepspeed.optimizer

    def moment_names(self, parameter: nn.Parameter) -> tuple[str, ...]:
        """Names of the moments that the wrapped optimizer keeps of a parameter."""
        return moment_names(self.inner_optimizer, parameter)


def build(
    name: str,
    module: nn.Module,
    *,
    learning_rate: float,
    betas: Sequence[float],
    settings: dict[str, Any],
    world: World,
    matrices: Sequence[nn.Parameter] = (),
    muon_learning_rate: float | None = None,
) -> Engine:
    """`module` with the optimizer of `optimizer_for` in a DeepSpeed engine.

    settings: the DeepSpeed JSON, complete and with batch sizes.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = optimizer_for(
        trained, learning_rate=learning_rate, betas=betas, matrices=matrices, muon_learning_rate=muon_learning_rate
    )
    return wrap(name, module, optimizer, settings=settings, world=world)


def wrap(
    name: str, module: nn.Module, optimizer: torch.optim.Optimizer, *, settings: dict[str, Any], world: World
) -> Engine:
    """`module` and `optimizer` in a DeepSpeed engine; every rank gets rank 0's parameters and buffers."""
    import deepspeed

    assert settings["gradient_clipping"] == 0, "left out, DeepSpeed clips at 1"
    trained = {key: parameter for key, parameter in module.named_parameters() if parameter.requires_grad}
    # ZeRO accepts a list of optimizers by name; ours is one of them without a moment.
    settings = settings | {"zero_allow_untested_optimizer": True}
    wrapped, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    for buffer in wrapped.module.buffers():
        _broadcast(buffer, world)
    engine = Engine(name, wrapped, trained)
    if engine.scaler is not None:
        # At the smallest scale DeepSpeed raises a bare Exception within the step; `skips` counts instead.
        engine.scaler.raise_error_at_min_scale = False
    return engine


def _broadcast(buffer: Tensor, world: World) -> None:
    # DeepSpeed broadcasts parameters only.
    if world.size > 1:
        torch.distributed.broadcast(buffer, src=0)
