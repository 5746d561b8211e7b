"""A network whose steps are differentially private, behind the verbs of `runtime.engine`.

    for each unit of the batch: engine.backward(loss of that unit)
    engine.step()                       also after no unit at all

`backward` clips one unit's whole gradient, so memory holds one gradient and one sum, not one per unit. `step` adds up
the ranks, adds noise once, divides by the expected number of units and updates. A unit whose gradient is not finite
counts as zero: so a step depends on no unit by more than the clipping norm, and none is skipped.

The noise is numpy's (Philox, seeded with the whole key and the number of releases before), made on the CPU and moved to
where the weights are: the same bytes after a resume, and on whatever device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vesselgan.core.errors import PrivacyError, UsageError
from vesselgan.privacy.opacus_parts import private_optimizer
from vesselgan.runtime.adam import BOTH_MOMENTS, SECOND_MOMENT, AdamWithoutMomentum, adam_for
from vesselgan.runtime.distributed import World
from vesselgan.runtime.nonfinite import NonFiniteCounter

_STREAM = 0xD0


@dataclass
class Counters:
    """What DeepSpeed counts in its engine."""

    global_steps: int = 0
    skipped_steps: int = 0
    """Units that counted as zero."""
    micro_steps: int = 0


@dataclass(frozen=True)
class Batch:
    """What the last step was made of, over all ranks."""

    units: int
    dropped: int
    """Of them, those whose gradient was not finite."""
    mean_loss: float
    """Of the others; computed without noise, so not for release."""


class PrivateEngine:
    """One network with Adam behind clipping and noise; float32, every rank holds all of it."""

    micro_batches = 1
    loss_scale = 1.0
    scaler = None
    is_partitioned = False
    dtype = torch.float32

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        weight_clip: float,
        world: World,
    ) -> None:
        self.name, self.module, self.device = name, module, world.device
        self.parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
        """Stepped parameters by name; frozen biases are not among them."""
        self.counters, self.skips = Counters(), NonFiniteCounter()
        self.batch = Batch(0, 0, 0.0)
        self._optimizer, self._weight_clip = optimizer, weight_clip
        self.key: int | None = None
        """What the noise is drawn from; set before the first step."""
        self._world = world
        self._sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        self._norm = torch.zeros((), device=world.device)

    @property
    def releases(self) -> int:
        """Noisy sums so far, each of one batch: what the accountant counts."""
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

    @property
    def moment_names(self) -> tuple[str, ...]:
        return SECOND_MOMENT if isinstance(self.inner_optimizer, AdamWithoutMomentum) else BOTH_MOMENTS

    def backward(self, loss: Tensor) -> None:
        """Take in one unit: its gradient, clipped, joins the sum."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [parameter.grad for parameter in self.parameters.values()]
        is_finite = torch.nn.utils.get_total_norm(gradients).isfinite() & loss.detach().isfinite()
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad_sample = torch.where(is_finite, gradient, 0.0).unsqueeze(0)
        self._optimizer.signal_skip_step(do_skip=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        value = torch.where(is_finite, loss.detach(), 0.0)
        self._sums += torch.stack([torch.ones_like(value), 1 - is_finite.to(value), value]).to(self._sums)

    def step(self) -> bool:
        """One release: noise by the key and the number of releases before it, then the update. Always True."""
        assert self.key is not None
        source = np.random.Philox(np.random.SeedSequence((self.key, self.releases, _STREAM)))
        self._optimizer.generator = np.random.Generator(source)
        for parameter in self.parameters.values():
            # No unit more; where there was none at all, this makes the zero that the noise is added to.
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self._optimizer.step()
        self._norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in self.parameters.values()])
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.clamp_(-self._weight_clip, self._weight_clip)
        self.counters.global_steps += 1
        self._take_stock()
        return True

    def check_single_use(self, position: int) -> None:
        """PrivacyError unless batch `position` is the next one: two releases of one batch are not what is accounted."""
        if position != self.releases:
            raise PrivacyError(
                f"batch {position} for release {self.releases} of the {self.name}: every release needs a batch of its "
                "own; the run's place in the data and its accountant differ, so go on from a whole checkpoint"
            )

    def _take_stock(self) -> None:
        if self._world.size > 1:
            torch.distributed.all_reduce(self._sums)
        units, dropped, loss = self._sums.tolist()
        self._sums.zero_()
        self.batch = Batch(int(units), int(dropped), loss / max(1.0, units - dropped))
        self.counters.skipped_steps += self.batch.dropped
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
    weight_clip: float,
    world: World,
) -> PrivateEngine:
    """`module` on this rank's device with a private Adam; every rank gets rank 0's parameters.

    expected_batch: units per step over all ranks. UsageError for a module with layers that let samples, or what is not
    a parameter, into a gradient.
    """
    check_layers(module)
    # A release that is made again after a kill must have the same bytes: cuDNN's other kernels add in any order.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    module.to(world.device, torch.float32)
    for parameter in module.parameters():
        if world.size > 1:
            torch.distributed.broadcast(parameter.data, src=0)
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = private_optimizer(
        adam_for(learned, learning_rate=learning_rate, betas=betas),
        noise_multiplier=noise_multiplier,
        clip_norm=clip_norm,
        expected_batch=expected_batch,
        num_ranks=world.size,
    )
    return PrivateEngine(name, module, optimizer, weight_clip=weight_clip, world=world)


def check_layers(module: nn.Module) -> None:
    """UsageError for batch normalisation and for trained layers with buffers (spectral normalisation)."""
    for name, part in module.named_modules():
        kind = type(part).__name__.removeprefix("Parametrized")
        if isinstance(part, _BatchNorm) or "BatchNorm" in kind:
            raise UsageError(f"{name}: {kind} mixes the samples of a batch, so no unit has a gradient of its own: use "
                             "InstanceNorm3d or GroupNorm")  # fmt: skip
        if _has_learned(part) and any(True for _ in part.buffers()) and not list(part.children()):
            raise UsageError(f"{name}: {kind} has trained weights and buffers; no private gradient covers buffers")
        if hasattr(part, "parametrizations"):
            raise UsageError(f"{name}: the weight of this {kind} is parametrised (spectral normalisation), which has "
                             "no private gradient: set variant.critic_norm=instance")  # fmt: skip


def _has_learned(part: Any) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters(recurse=False))
