"""One network in its DeepSpeed engine, behind the few verbs that a training loop needs.

    loss = f(engine.module(x)); engine.backward(loss); engine.step()

Always `engine.module(x)`, never the DeepSpeed engine's own forward: with two networks and a gradient penalty that path
loses gradients (measured). The player that does not learn is frozen with `set_trainable` by the loop.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vesselgan.errors import ResourceError
from vesselgan.runtime.distributed import World, half_is_missing


class Engine:
    """A network with its optimizer, loss scaler and gradient reduction."""

    def __init__(self, name: str, deepspeed_engine: Any, parameter_names: dict[str, nn.Parameter]) -> None:
        self.name = name
        self.deepspeed = deepspeed_engine
        self.parameters = parameter_names
        """Stepped parameters by name; frozen biases are not among them."""

    @property
    def module(self) -> nn.Module:
        return self.deepspeed.module

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return next(iter(self.parameters.values())).dtype

    def backward(self, loss: Tensor) -> None:
        """Scaled backward of one micro-batch's mean loss (accumulation is divided out)."""
        self.deepspeed.backward(loss)

    def step(self) -> bool:
        """Reduce over ranks and update, at an accumulation boundary; False when an overflow skipped the update."""
        self.deepspeed.step()
        return self.deepspeed.was_step_applied()

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
    def is_partitioned(self) -> bool:
        """Whether ZeRO keeps float32 masters and moments in flat partitions."""
        return self.deepspeed.zero_optimization()

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """The Adam inside, whatever wraps it."""
        return self.deepspeed.optimizer.optimizer if self.is_partitioned else self.deepspeed.optimizer


def build(
    name: str,
    module: nn.Module,
    *,
    learning_rate: float,
    betas: Sequence[float],
    settings: dict[str, Any],
    world: World,
    agreeing_command: str,
) -> Engine:
    """`module` wrapped by DeepSpeed with an Adam of its own; `settings` is a resolved dict (config.deepspeed.resolve).

    ResourceError when the accelerator lacks the precision; `agreeing_command` is the whole command that would run.
    """
    import deepspeed

    precision = "fp16" if settings.get("fp16", {}).get("enabled") else "bf16"
    if (precision == "fp16" or settings.get("bf16", {}).get("enabled")) and half_is_missing(precision):
        raise ResourceError(
            f"this {world.device.type} has no {precision} that DeepSpeed accepts; a command that would run here: "
            f"{agreeing_command}"
        )
    learned = {key: parameter for key, parameter in module.named_parameters() if parameter.requires_grad}
    # Floats: an int decay rate raises in torch 2.13. fused: 2.7 times the speed of the loop form on CPU.
    optimizer = torch.optim.Adam(
        list(learned.values()), lr=learning_rate, betas=(float(betas[0]), float(betas[1])), fused=True
    )
    wrapped, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    for buffer in wrapped.module.buffers():
        _broadcast(buffer, world)
    return Engine(name, wrapped, learned)


def _broadcast(buffer: Tensor, world: World) -> None:
    # DeepSpeed broadcasts parameters only.
    if world.size > 1:
        torch.distributed.broadcast(buffer, src=0)
