"""The cost of a step before it is taken: floating point operations and peak memory, counted without data.

The very step that trains runs once on tensors without contents (torch's fake tensors for a CPU, meta tensors for a
GPU): every operation adds its multiply-adds, every tensor its bytes for as long as it lives. So a change of the
networks or of the step changes the prediction with it. What DeepSpeed and Adam hold is added by formula, from the
number of parameters, the precision and the ZeRO stage.
"""

import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from vesselgan.config.flow import muon_learning_rate
from vesselgan.config.schema import Variant
from vesselgan.data.positions import Places
from vesselgan.models.blocks import BatchNorm3d
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.variants import build_networks, takes_tissue
from vesselgan.privacy.engine import BatchCounts
from vesselgan.privacy.step import PoissonBatch
from vesselgan.privacy.step import critic_step as private_critic_step
from vesselgan.privacy.step import flow_step as private_flow_step
from vesselgan.runtime.adam import num_moments
from vesselgan.runtime.precision import torch_type
from vesselgan.trainer.batch_plan import BatchPlan
from vesselgan.training.flow import flow_step
from vesselgan.training.gan import critic_step, generator_step

FLOAT32 = 4
BUCKET = 500_000_000
"""Elements in ZeRO's reduction bucket where the JSON says nothing (DeepSpeed's default)."""
CPU_OVERHEAD = 1.45
"""Growth of a process on a CPU, per byte of live tensors: malloc keeps freed blocks.

Measured on five fp32 steps of 14 to 524 MB: 1.26 to 1.65, so a prediction is off by up to 16 per cent.
"""


@dataclass(frozen=True)
class StepSetup:
    """What the cost of a rank's step depends on."""

    variant: Variant
    patch_shape: Sequence[int]
    batch: BatchPlan
    deepspeed: Mapping[str, Any]
    """The JSON: ZeRO's stage and bucket."""
    device: str
    """`cpu` or `cuda`; neither is needed."""
    has_average: bool

    @property
    def zero(self) -> Mapping[str, Any]:
        return self.deepspeed.get("zero_optimization", {})

    @property
    def is_partitioned(self) -> bool:
        """Whether ZeRO divides masters and moments over the ranks."""
        return self.zero.get("stage", 0) > 0


@dataclass(frozen=True)
class StepCost:
    """Of one rank."""

    flop: int
    """Floating point operations of a step, a multiply-add as two; a GAN's has n_critic critic steps."""
    standing_bytes: int
    """Between steps: weights, masters, moments, moving average, the batch."""
    peak_bytes: int
    """During a step. On a GPU the live tensors (torch.cuda.max_memory_allocated), without the CUDA context and cuDNN's
    workspaces: 1 to 2 % below what an H100 took. On a CPU the growth of the process: the live tensors
    times CPU_OVERHEAD."""


def step_cost(setup: StepSetup) -> StepCost:
    """The cost of one rank's step; needs no data and no device."""
    variant, per_rank, is_cpu = setup.variant, setup.batch.per_rank, setup.device == "cpu"
    tensor_device = torch.device("cpu" if is_cpu else "meta")
    mode: AbstractContextManager[Any] = FakeTensorMode() if is_cpu else nullcontext()
    memory = _Memory()
    counter = _StepCounter(memory)
    with mode, counter:
        # Stand-ins with what a step calls.
        engines: dict[str, Any] = {
            name: _EngineStub(name, network, setup, memory, tensor_device)
            for name, network in meta_networks(variant, setup.patch_shape).items()
        }
        generator = engines["generator"]
        if setup.has_average:
            memory.allocate("average", FLOAT32 * generator.num_parameters)
        noise: Any = _NoiseStub(per_rank, generator.module.latent_size)
        channels = 3 if takes_tissue(generator.module) else 2
        batch: Any = torch.empty(per_rank, channels, *setup.patch_shape, device=tensor_device)
        standing = memory.live
        critic_flop = 0
        if variant.dp is not None:
            private = engines.get("critic", generator)
            memory.allocate(f"{private.name}/sum", FLOAT32 * private.num_parameters)
            places = Places(torch.empty(per_rank, 3), torch.empty(per_rank, 3))
            private_batch = PoissonBatch(range(per_rank), batch, places)
        if variant.flow is not None and variant.dp is not None:
            private_flow_step(generator, private_batch, 0)
        elif variant.flow is not None:
            flow_step(generator, (batch, torch.empty(per_rank, 3)), noise, 0)
        else:
            critic, update_critic = engines["critic"], cast(Any, critic_step)
            if variant.dp is not None:
                update_critic, batch = private_critic_step, private_batch
            elif variant.condition is not None:
                batch = batch, torch.empty(per_rank, 3)
            update_critic(critic, generator, batch, noise, 0, variant)
            critic_flop = counter.flop
            generator_step(critic, generator, noise, 0, batch=batch)
    return StepCost(
        flop=counter.flop + critic_flop * (variant.n_critic - 1),
        standing_bytes=standing,
        peak_bytes=round(memory.peak * CPU_OVERHEAD) if is_cpu else memory.peak,
    )


@dataclass(frozen=True)
class BatchFit:
    """A batch that fits, and the cost of its step."""

    batch: BatchPlan
    cost: StepCost


def largest_fitting_batch(setup: StepSetup, limit_bytes: float) -> BatchFit | None:
    """The largest batch per rank whose peak stays within `limit_bytes`; None when not even one patch does.

    Smaller micro-batches of the critic come first: they change nothing that is computed. The generator takes its whole
    batch at once, so where they do not help follows half the batch per rank, a quarter, and so on. A penalty over the
    whole batch takes no micro-batches.
    """
    per_rank, ranks, is_whole = setup.batch.per_rank, setup.batch.ranks, setup.variant.penalty_reduction == "batch"
    for size in (per_rank >> halvings for halvings in range(per_rank.bit_length())):
        for micro in (micro for micro in range(size, size - 1 if is_whole else 0, -1) if size % micro == 0):
            batch = BatchPlan.of(size * ranks, micro, ranks=ranks)
            cost = step_cost(replace(setup, batch=batch))
            if cost.peak_bytes <= limit_bytes:
                return BatchFit(batch, cost)
    return None


def num_muon_weights(variant: Variant, network: nn.Module) -> int:
    """Numbers in the matrices that Muon updates; 0 without it."""
    if muon_learning_rate(variant) is None:
        return 0
    assert isinstance(network, FlowGenerator)
    return sum(parameter.numel() for parameter in network.matrices())


def meta_networks(variant: Variant, patch_shape: Sequence[int]) -> dict[str, nn.Module]:
    """The variant's networks on the meta device: shapes without contents."""
    with torch.device("meta"):
        return build_networks(variant, patch_shape)


class _EngineStub:
    """As much of an Engine as a step calls. It holds the memory that DeepSpeed would and updates nothing."""

    key = 0

    def __init__(self, name: str, module: nn.Module, setup: StepSetup, memory: "_Memory", device: torch.device) -> None:
        self.name, self.module, self.device = name, module, device
        self.dtype = torch_type(setup.variant.precision)
        is_whole = name == "generator" and setup.variant.flow is None
        self.micro_batches = 1 if is_whole else setup.batch.accumulation
        self.batch = BatchCounts(0, 0, 0.0)
        self.num_parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        self._memory, self._size = memory, self.dtype.itemsize
        self._is_partitioned = setup.is_partitioned
        self._partition = -(-self.num_parameters // setup.batch.ranks) if setup.is_partitioned else self.num_parameters
        has_two_buckets = setup.zero.get("overlap_comm", False)
        self._bucket = setup.zero.get("reduce_bucket_size", BUCKET) * self._size * (1 + has_two_buckets)
        self._materialise()
        # ZeRO keeps a float32 master of its partition even where the weights are float32.
        kept = num_moments(self.num_parameters, num_muon_weights(setup.variant, module), setup.variant.betas)
        masters = self.num_parameters * self._is_partitioned
        ranks = setup.batch.ranks if setup.is_partitioned else 1
        memory.allocate(f"{name}/state", FLOAT32 * -(-(kept + masters) // ranks))

    def _materialise(self) -> None:
        """Weights in the engine's type, buffers in their own, on the device; BatchNorm without other ranks."""
        for module in self.module.modules():
            if isinstance(module, BatchNorm3d):
                module.sync_ranks = False
            for key, value in module._parameters.items():
                if value is not None:
                    empty = torch.empty(value.shape, dtype=self.dtype, device=self.device)
                    module._parameters[key] = nn.Parameter(empty, requires_grad=value.requires_grad)
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype, device=self.device)

    @property
    def gradient_norm(self) -> Tensor:
        return torch.zeros((), device=self.device)

    def check_single_use(self, position: int) -> None:
        """Nothing is released."""

    def backward(self, loss: Tensor) -> None:
        # On a CPU the bucket's pages are mapped when gradients, which are freed then, are copied there.
        has_bucket = self._is_partitioned and self.device.type != "cpu"
        if has_bucket:
            self._memory.allocate(f"{self.name}/bucket", self._bucket)
        loss.backward()
        if has_bucket:
            self._memory.free(f"{self.name}/bucket")

    def step(self) -> bool:
        if self._is_partitioned:
            # The gradient once more, flat; from half it is then written in float32.
            self._memory.allocate(f"{self.name}/flat", self._size * self._partition)
            if self._size < FLOAT32:
                self._memory.allocate(f"{self.name}/master gradient", FLOAT32 * self._partition)
            self._memory.free(f"{self.name}/flat")
        for parameter in self.module.parameters():
            parameter.grad = None
        self._memory.free(f"{self.name}/master gradient")
        return True


@dataclass(frozen=True)
class _NoiseStub:
    """NoiseSampler without contents."""

    batch_size: int
    latent_size: int

    def latents_NL(self, stream: int, position: int) -> Tensor:
        return torch.empty(self.batch_size, self.latent_size)

    def epsilons_N(self, position: int) -> Tensor:
        return torch.empty(self.batch_size)

    def times_N(self, position: int) -> Tensor:
        return torch.empty(self.batch_size)

    def voxels(self, position: int, shape_CXYZ: Sequence[int], device: torch.device) -> Tensor:
        return torch.empty(self.batch_size, *shape_CXYZ, device=device)


class _StepCounter(TorchDispatchMode):
    """Adds up the operations' multiply-adds and follows every tensor's memory."""

    def __init__(self, memory: "_Memory") -> None:
        super().__init__()
        self.flop = 0
        self._memory = memory
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=outputs)
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        return outputs

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self._memory.allocate(key, storage.nbytes())
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._known.discard(key)
        self._memory.free(key)


class _Memory:
    """Blocks by key; `live` bytes now, `peak` the most so far."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._sizes: dict[object, int] = {}

    def allocate(self, key: object, size: int) -> None:
        self._sizes[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)

    def free(self, key: object) -> None:
        """A key without a block is free already."""
        self.live -= self._sizes.pop(key, 0)
