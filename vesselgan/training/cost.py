"""What a step costs before it is taken: multiply-adds and memory, counted on the very step that trains, without data.

Both players' steps run once on tensors that have a shape and no contents (torch's fake tensors for a CPU, meta tensors
for a GPU). Every operation tells its multiply-adds; every tensor tells its bytes when it is made and when it is let go.
So a change of the networks or of the step changes the prediction with it. What DeepSpeed and Adam keep is added by
formula, from the number of parameters, the precision and the ZeRO stage.
"""

import bisect
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from vesselgan.config.deepspeed import precision_of
from vesselgan.config.schema import Variant
from vesselgan.models.blocks import BatchNorm3d
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.privacy.engine import Batch
from vesselgan.privacy.step import PoissonBatch
from vesselgan.privacy.step import critic_step as private_critic_step
from vesselgan.runtime.adam import moment_names
from vesselgan.training.gan import critic_step, generator_step

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FLOAT32 = 4
BUCKET = 500_000_000
"""Numbers in ZeRO's reduction bucket where the JSON says nothing (DeepSpeed's default)."""
MMAP_LIMIT = 32 * 2**20
"""Bytes; glibc gives larger blocks back to the system when they are freed, smaller ones it may keep."""


@dataclass(frozen=True)
class Cost:
    """Of one rank."""

    flop: int
    """Floating point operations of a step, a multiply-add as two: n_critic critic steps and one generator step."""
    standing_bytes: int
    """What is there between steps: weights, masters, moments, moving average, the batch."""
    peak_bytes: int
    """The most during a step. On a GPU what tensors hold (torch.cuda.max_memory_allocated), without the CUDA context
    and cuDNN's workspaces; on a CPU what the process grows by, with what malloc keeps back."""


def step_cost(
    variant: Variant,
    patch_shape: Sequence[int],
    settings: dict[str, dict[str, Any]],
    *,
    batch_per_rank: int,
    ranks: int,
    device: str,
    has_average: bool,
) -> Cost:
    """The cost of a step of `variant` on one of `ranks`, `device` being `cpu` or `cuda`; needs neither.

    settings: the resolved DeepSpeed dict of each player (precision, ZeRO stage, bucket, micro-batches).
    """
    memory: _Allocator = _Heap() if device == "cpu" else _Tensors()
    place = torch.device("cpu" if device == "cpu" else "meta")
    mode: AbstractContextManager = FakeTensorMode() if device == "cpu" else nullcontext()
    ledger = _Ledger(memory)
    with mode, ledger:
        critic, generator = (
            _Rehearsed(name, module, settings[name], memory, variant.betas, ranks=ranks, device=place)
            for name, module in players_of(variant, patch_shape).items()
        )
        if has_average:
            memory.take("average", FLOAT32 * generator.num_parameters)
        draws = _Blanks(batch_per_rank, variant.latent_size)
        batch: Any = torch.empty(batch_per_rank, 2, *patch_shape, device=place)
        standing = memory.live
        update = critic_step if variant.dp is None else private_critic_step
        if variant.dp is not None:
            batch = PoissonBatch(range(batch_per_rank), batch)
            memory.take("critic/sum", FLOAT32 * critic.num_parameters)
        # The first round leaves behind what the second finds: gaps in the heap.
        for _ in range(2):
            ledger.flop = 0
            update(critic, generator, batch, draws, 0, variant)
            flop = ledger.flop * (variant.n_critic - 1)
            generator_step(critic, generator, draws, 0)
        return Cost(flop=ledger.flop + flop, standing_bytes=standing, peak_bytes=memory.peak)


@dataclass(frozen=True)
class Fit:
    """A cut of the batch, and what a step with it costs."""

    batch_per_rank: int
    batch_per_gpu: int
    cost: Cost


def fitting(
    variant: Variant,
    patch_shape: Sequence[int],
    settings: dict[str, dict[str, Any]],
    *,
    batch_per_rank: int,
    ranks: int,
    device: str,
    has_average: bool,
    limit_bytes: float,
) -> Fit | None:
    """The largest cut of the batch whose peak stays within `limit_bytes`; None when not even one patch does.

    First smaller turns of the critic alone, which change nothing that is computed; the generator sees its share in one,
    so where those do not help, half the share, a quarter, and so on: more ranks, or a smaller batch.
    """
    for share in (batch_per_rank >> halvings for halvings in range(batch_per_rank.bit_length())):
        for micro in (number for number in range(share, 0, -1) if share % number == 0):
            critic = settings["critic"] | {"gradient_accumulation_steps": share // micro}
            cost = step_cost(
                variant,
                patch_shape,
                settings | {"critic": critic},
                batch_per_rank=share,
                ranks=ranks,
                device=device,
                has_average=has_average,
            )
            if cost.peak_bytes <= limit_bytes:
                return Fit(share, micro, cost)
    return None


def players_of(variant: Variant, patch_shape: Sequence[int]) -> dict[str, nn.Module]:
    """`critic` and `generator`, shapes without contents."""
    shape = tuple(patch_shape)
    with torch.device("meta"):
        return {
            "critic": Critic(shape, variant.width, variant.critic_norm),
            "generator": Generator(shape, variant.width, variant.latent_size, variant.generator_norm),
        }


class _Rehearsed:
    """As much of an Engine as a step calls. It holds what DeepSpeed would and updates nothing."""

    key = 0

    def __init__(
        self,
        name: str,
        module: nn.Module,
        settings: dict[str, Any],
        memory: "_Allocator",
        betas: Sequence[float],
        *,
        ranks: int,
        device: torch.device,
    ) -> None:
        self.name, self.module, self.device = name, module, device
        self.dtype = TYPES[precision_of(settings)]
        self.micro_batches = settings.get("gradient_accumulation_steps", 1)
        self.batch = Batch(0, 0, 0.0)
        self.num_parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        self._memory, self._size = memory, torch.empty(0, dtype=self.dtype).element_size()
        zero = settings.get("zero_optimization", {})
        self._is_partitioned = zero.get("stage", 0) > 0
        self._part = -(-self.num_parameters // ranks) if self._is_partitioned else self.num_parameters
        self._bucket = zero.get("reduce_bucket_size", BUCKET) * self._size * (1 + zero.get("overlap_comm", False))
        self._materialise()
        # ZeRO keeps a float32 master of its part even where the weights are float32.
        masters = 1 if self._is_partitioned else 0
        for kind in range(masters + len(moment_names(betas))):
            memory.take(f"{name}/state/{kind}", FLOAT32 * self._part)

    def _materialise(self) -> None:
        """Weights in the engine's type, buffers as they are, on the device; a rank alone."""
        for part in self.module.modules():
            if isinstance(part, BatchNorm3d):
                part.sync_ranks = False
            for key, value in part._parameters.items():
                if value is not None:
                    blank = torch.empty(value.shape, dtype=self.dtype, device=self.device)
                    part._parameters[key] = nn.Parameter(blank, requires_grad=value.requires_grad)
            for key, value in part._buffers.items():
                part._buffers[key] = torch.empty(value.shape, dtype=value.dtype, device=self.device)

    @property
    def gradient_norm(self) -> Tensor:
        return torch.zeros((), device=self.device)

    def check_single_use(self, position: int) -> None:
        """Nothing is released."""

    def backward(self, loss: Tensor) -> None:
        # A CPU gives the bucket's pages when they are written, in exchange for the gradients that are copied there.
        has_bucket = self._is_partitioned and self.device.type != "cpu"
        if has_bucket:
            self._memory.take(f"{self.name}/bucket", self._bucket)
        loss.backward()
        if has_bucket:
            self._memory.give(f"{self.name}/bucket")

    def step(self) -> bool:
        if self._is_partitioned:
            # The gradient once more, flat; from half it is then written in float32.
            self._memory.take(f"{self.name}/flat", self._size * self._part)
            self._memory.take(f"{self.name}/master gradient", (FLOAT32 if self._size < FLOAT32 else 0) * self._part)
            self._memory.give(f"{self.name}/flat")
        for parameter in self.module.parameters():
            parameter.grad = None
        if self._is_partitioned:
            self._memory.give(f"{self.name}/master gradient")
        return True


@dataclass(frozen=True)
class _Blanks:
    """NoiseSampler without contents."""

    batch_size: int
    latent_size: int

    def latents_NL(self, stream: int, position: int) -> Tensor:
        return torch.empty(self.batch_size, self.latent_size)

    def epsilons_N(self, position: int) -> Tensor:
        return torch.empty(self.batch_size)


class _Ledger(TorchDispatchMode):
    """Adds up the operations' multiply-adds and follows every tensor's memory from its making to its end."""

    def __init__(self, memory: "_Allocator") -> None:
        super().__init__()
        self.flop = 0
        self._memory = memory
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        return made

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self._memory.take(key, storage.nbytes())
            weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self._known.discard(key)
        self._memory.give(key)


class _Allocator:
    """Blocks by key; `live` bytes now, `peak` the most so far."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._sizes: dict[object, int] = {}

    def take(self, key: object, size: int) -> None:
        self._sizes[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)

    def give(self, key: object) -> None:
        self.live -= self._sizes.pop(key)


class _Tensors(_Allocator):
    """A GPU's caching allocator: what tensors hold."""


class _Heap(_Allocator):
    """glibc's malloc as a training process meets it: best fit in a heap that grows and does not shrink.

    Blocks beyond a threshold lie apart and return to the system; the threshold follows the largest block that was
    freed, up to MMAP_LIMIT. So small patches keep back up to half of what they need, large ones nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._starts: dict[object, int] = {}
        self._gaps: list[tuple[int, int]] = []
        """(start, size) of what is free, by address."""
        self._top, self._apart, self._threshold = 0, 0, 128 * 1024

    def take(self, key: object, size: int) -> None:
        self._sizes[key] = size
        self.live += size
        if size > self._threshold:
            self._apart += size
        else:
            self._starts[key] = self._place(size)
        self.peak = max(self.peak, self._top + self._apart)

    def give(self, key: object) -> None:
        size = self._sizes.pop(key)
        self.live -= size
        if key not in self._starts:
            self._apart -= size
            if size <= MMAP_LIMIT:
                self._threshold = max(self._threshold, size)
            return
        start = self._starts.pop(key)
        at = bisect.bisect(self._gaps, (start, size))
        if at < len(self._gaps) and self._gaps[at][0] == start + size:
            size += self._gaps.pop(at)[1]
        if at and sum(self._gaps[at - 1]) == start:
            start, before = self._gaps.pop(at - 1)
            size, at = size + before, at - 1
        self._gaps.insert(at, (start, size))

    def _place(self, size: int) -> int:
        fitting = [(room, start) for start, room in self._gaps if room >= size]
        if fitting:
            room, start = min(fitting)
            at = self._gaps.index((start, room))
            self._gaps[at : at + 1] = [(start + size, room - size)] if room > size else []
            return start
        start = self._gaps.pop()[0] if self._gaps and sum(self._gaps[-1]) == self._top else self._top
        self._top = start + size
        return start
