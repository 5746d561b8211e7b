"""A network with differentially private steps, with the interface of `runtime.engine`.

    for each unit of the batch: engine.backward(loss of that unit)
    engine.step()                       also after no unit at all

`backward` clips the whole gradient of one unit: memory holds one gradient and one sum, not one per unit. `step` sums
over ranks, adds noise once, divides by the expected number of units and updates. A unit whose gradient is not finite
counts as zero: no unit changes a step by more than the clipping norm, and no step is skipped.

A release is such a noisy sum; whatever is computed from releases alone spends no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vesselgan.core.errors import PrivacyError, UsageError
from vesselgan.privacy.gaussian_noise import noise_source
from vesselgan.privacy.opacus_parts import private_optimizer
from vesselgan.runtime.adam import moment_names, optimizer_for
from vesselgan.runtime.distributed import World, select_kernels
from vesselgan.runtime.nonfinite import NonFiniteCounter


@dataclass
class Counters:
    """The counters of a DeepSpeed engine."""

    global_steps: int = 0
    skipped_steps: int = 0
    """Units that counted as zero."""
    micro_steps: int = 0


@dataclass(frozen=True)
class BatchCounts:
    """The batch of the last step, over all ranks."""

    num_units: int
    num_dropped: int
    """Units whose gradient was not finite."""
    mean_loss: float
    """Of the other units; has no noise, so not for release."""


class PrivateEngine:
    """One network with Adam behind clipping and noise; float32, replicated on every rank."""

    micro_batches = 1
    loss_scale = 1.0
    scaler = None
    is_partitioned = False
    dtype = torch.float32

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: Any,
        *,
        weight_clip: float | None,
        world: World,
    ) -> None:
        self.name, self.module, self.device = name, module, world.device
        self.parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
        """Trained parameters by name."""
        self.counters, self.skips = Counters(), NonFiniteCounter()
        self.batch = BatchCounts(0, 0, 0.0)
        self._optimizer, self._weight_clip = optimizer, weight_clip
        self.key: int | None = None
        """Seed of the noise; set before the first step."""
        self._world = world
        self._sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        self._norm = torch.zeros((), device=world.device)

    @property
    def num_releases(self) -> int:
        """Noisy sums released so far, one per batch: what the accountant counts."""
        return self.counters.global_steps

    @property
    def skipped_steps(self) -> int:
        return self.counters.skipped_steps

    @property
    def gradient_norm(self) -> Tensor:
        """L2 norm of the last noisy gradient."""
        return self._norm

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer.original_optimizer

    def moment_names(self, parameter: nn.Parameter) -> tuple[str, ...]:
        """Names of the moments that the wrapped optimizer keeps of a parameter."""
        return moment_names(self.inner_optimizer, parameter)

    def backward(self, loss: Tensor) -> None:
        """Add the clipped gradient of one unit to the sum."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters: list[Any] = list(self.parameters.values())  # Any: Opacus reads their attribute grad_sample
        gradients = [parameter.grad for parameter in parameters]
        is_finite = torch.nn.utils.get_total_norm(gradients).isfinite() & loss.detach().isfinite()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad_sample = torch.where(is_finite, gradient, 0.0).unsqueeze(0)
        self._optimizer.signal_skip_step(do_skip=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        value = torch.where(is_finite, loss.detach(), 0.0)
        self._sums += torch.stack([torch.ones_like(value), 1 - is_finite.to(value), value]).to(self._sums)

    def step(self) -> bool:
        """One release: noise from the key and the number of earlier releases, then the update. Always True."""
        assert self.key is not None
        self._optimizer.generator = noise_source(self.key, self.num_releases)
        parameters: list[Any] = list(self.parameters.values())
        for parameter in parameters:
            # No further unit; after an empty batch this creates the zero sum that the noise is added to.
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self._optimizer.step()
        self._norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        self._optimizer.zero_grad(set_to_none=True)
        if self._weight_clip is not None:
            with torch.no_grad():
                for parameter in parameters:
                    parameter.clamp_(-self._weight_clip, self._weight_clip)
        self.counters.global_steps += 1
        self._reduce_batch()
        return True

    def check_single_use(self, position: int) -> None:
        """PrivacyError unless batch `position` is the next one: the accountant assumes one release per batch."""
        if position != self.num_releases:
            raise PrivacyError(
                f"batch {position} for release {self.num_releases} of the {self.name}: every release needs a batch of "
                "its own; the run's position in the data and its accountant differ, so resume from a complete "
                "checkpoint"
            )

    def _reduce_batch(self) -> None:
        if self._world.size > 1:
            torch.distributed.all_reduce(self._sums)
        units, dropped, loss = self._sums.tolist()
        self._sums.zero_()
        self.batch = BatchCounts(int(units), int(dropped), loss / max(1.0, units - dropped))
        self.counters.skipped_steps += self.batch.num_dropped
        if units and units == dropped:
            self.skips.count(is_loss_finite=True, is_at_floor=True)
        else:
            self.skips.reset()


def build_private(
    name: str,
    module: nn.Module,
    *,
    learning_rate: float,
    betas: Sequence[float],
    noise_multiplier: float,
    clip_norm: float,
    expected_batch: float,
    weight_clip: float | None,
    world: World,
) -> PrivateEngine:
    """`module` on this rank's device with a private Adam; every rank gets rank 0's parameters.

    expected_batch: units per step over all ranks. UsageError for layers that `check_layers` refuses.
    """
    check_layers(module)
    # A release repeated after a kill must have the same bytes: other cuDNN kernels add in any order.
    select_kernels(deterministic=True)
    module.to(world.device, torch.float32)
    for parameter in module.parameters():
        if world.size > 1:
            torch.distributed.broadcast(parameter.data, src=0)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = private_optimizer(
        optimizer_for(trained, learning_rate=learning_rate, betas=betas),
        noise_multiplier=noise_multiplier,
        clip_norm=clip_norm,
        expected_batch=expected_batch,
        num_ranks=world.size,
    )
    return PrivateEngine(name, module, optimizer, weight_clip=weight_clip, world=world)


def check_layers(module: nn.Module) -> None:
    """UsageError for batch normalisation and for trained layers with buffers (spectral normalisation)."""
    for name, layer in module.named_modules():
        kind = type(layer).__name__.removeprefix("Parametrized")
        if isinstance(layer, _BatchNorm) or "BatchNorm" in kind:
            raise UsageError(f"{name}: {kind} mixes the samples of a batch, so no unit has a gradient of its own: use "
                             "InstanceNorm3d or GroupNorm")  # fmt: skip
        is_trained = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        if is_trained and any(True for _ in layer.buffers()) and not list(layer.children()):
            raise UsageError(f"{name}: {kind} has trained weights and buffers; no private gradient covers buffers")
        if hasattr(layer, "parametrizations"):
            raise UsageError(f"{name}: the weight of this {kind} is parametrised (spectral normalisation), which has "
                             "no private gradient: set variant.critic_norm=instance")  # fmt: skip
