"""Normalisations whose statistics stay float32 (float64 in a float64 module) in every precision of the weights.

Shapes: N batch, C channel, X Y Z voxels.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vesselgan.core.errors import UsageError

# The estimate of sigma is then off by a few per cent at most.
INITIAL_POWER_ITERATIONS = 15
GROUP = 512
"""Values summed by one float32 accumulator."""


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half and bfloat16, the type itself otherwise."""
    return torch.promote_types(dtype, torch.float32)


class Float32Buffers(nn.Module):
    """A module whose floating buffers never become half: `.half()`, `.bfloat16()` and `.to(dtype)` skip them.

    running_var overflows in half (largest number 65,504), and a power iteration in half does not converge.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        buffers = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in buffers.items():
            moved = self._buffers[name]
            assert moved is not None
            if moved.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = buffer.to(moved.device)
        return self


class BatchNorm3d(Float32Buffers):
    """Batch normalisation over N X Y Z with learned scale and shift (Ioffe and Szegedy 2015).

    Training uses the statistics of the global batch: with torch.distributed on more than one rank they are merged,
    forward and backward, so two ranks with half a batch each compute what one computes with the whole. Every rank must
    then take part in every training forward. Evaluation uses running averages: plain means over the first 1 / momentum
    batches, exponential after. Unlike torch's, they do not contain their initial values, so a generator can be
    evaluated after few steps.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches: Tensor

    def __init__(self, num_features: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.sync_ranks = True
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        dtype = at_least_float32(x_NCXYZ.dtype)
        weight_C, bias_C = self.weight.to(dtype), self.bias.to(dtype)
        if not self.training:
            mean_C, variance_C = self.running_mean, self.running_var
            return F.batch_norm(x_NCXYZ, mean_C, variance_C, weight_C, bias_C, False, 0.0, self.eps)
        y_NCXYZ, mean_C, variance_C = _BatchNorm.apply(x_NCXYZ, weight_C, bias_C, self.eps, self.is_synced)
        self.update_running_stats(mean_C, variance_C)
        return y_NCXYZ

    @property
    def is_synced(self) -> bool:
        """Whether a training forward needs every rank."""
        return self.sync_ranks and _world_size() > 1

    @torch.no_grad()
    def update_running_stats(self, mean_C: Tensor, variance_C: Tensor) -> None:
        """Leaves a batch with an overflow out: a single one would spoil the averages for ever."""
        # Tensors throughout: no wait for the device.
        is_finite = mean_C.isfinite().all() & variance_C.isfinite().all()
        self.num_batches += is_finite
        rate = self.num_batches.clamp_min(1).to(self.running_mean.dtype).reciprocal().clamp_min(self.momentum)
        for average_C, value_C in ((self.running_mean, mean_C), (self.running_var, variance_C)):
            average_C.lerp_(torch.where(is_finite, value_C.to(average_C.dtype), average_C), rate)


class _BatchNorm(torch.autograd.Function):
    """Train-mode batch normalisation, over all ranks if `is_synced`. Returns output, mean, unbiased variance."""

    @staticmethod
    def forward(
        ctx: Any, x_NCXYZ: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, is_synced: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean_C, biased_C, ctx.count = batch_statistics(x_NCXYZ, is_synced)
        y_NCXYZ = F.batch_norm(x_NCXYZ, mean_C, biased_C, weight_C, bias_C, False, 0.0, eps)
        ctx.save_for_backward(x_NCXYZ, weight_C, mean_C, (biased_C + eps).rsqrt())
        ctx.is_synced, variance_C = is_synced, unbiased(biased_C, ctx.count)
        ctx.mark_non_differentiable(mean_C, variance_C)
        return y_NCXYZ, mean_C, variance_C

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, dy_NCXYZ: Tensor, _mean: Tensor, _variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x_NCXYZ, weight_C, mean_C, inverse_sd_C = ctx.saved_tensors
        gradients = batch_norm_gradients(dy_NCXYZ, x_NCXYZ, weight_C, mean_C, inverse_sd_C, ctx.count, ctx.is_synced)
        return *gradients, None, None


def batch_norm_gradients(
    dy_NCXYZ: Tensor,
    x_NCXYZ: Tensor,
    weight_C: Tensor,
    mean_C: Tensor,
    inverse_sd_C: Tensor,
    count: Tensor,
    is_synced: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of train-mode batch normalisation: input, scale, shift. A collective call if `is_synced`.

    Those of scale and shift stay local: the optimizer averages them over ranks like all others.
    """
    backward = torch.ops.aten.native_batch_norm_backward
    if not is_synced:
        mask = [True, True, True]
        return backward(dy_NCXYZ, x_NCXYZ, weight_C, None, None, mean_C, inverse_sd_C, True, 0.0, mask)
    # The sums come from the kernel for fixed statistics: written out they take twenty times as long on a CPU
    # (2x32x64x64x32).
    variance_C = inverse_sd_C.pow(-2)
    _, dweight_C, dbias_C = backward(
        dy_NCXYZ, x_NCXYZ, weight_C, mean_C, variance_C, None, None, False, 0.0, [False, True, True]
    )
    global_2C = torch.cat([dbias_C, dweight_C])
    dist.all_reduce(global_2C)
    mean_dy_C, mean_dy_normed_C = (global_2C / count).chunk(2)
    scale_C = weight_C * inverse_sd_C
    slope_C = -scale_C * inverse_sd_C * mean_dy_normed_C
    scale, slope, shift = (c.view(-1, 1, 1, 1) for c in (scale_C, slope_C, -scale_C * mean_dy_C - slope_C * mean_C))
    dx_NCXYZ = torch.empty_like(x_NCXYZ)
    # Sample by sample: a float32 copy of a whole half tensor would double the memory of a step.
    for dx, dy, x in zip(dx_NCXYZ, dy_NCXYZ, x_NCXYZ, strict=True):
        dx.copy_(torch.addcmul(shift, x.to(scale.dtype), slope).addcmul_(dy.to(scale.dtype), scale))
    return dx_NCXYZ, dweight_C, dbias_C


def batch_statistics(x_NCXYZ: Tensor, is_synced: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance (both at least float32) and count over N X Y Z.

    If `is_synced`, a collective call over all ranks, merged in rank order: the same bits on every rank, and no wait for
    the device. UsageError for a single value, which normalisation would make zero.
    """
    mean_C, variance_C = _local_statistics(x_NCXYZ)
    # The count is written by the device (new_full): a copy from the CPU would make the CPU wait.
    count = x_NCXYZ.numel() // x_NCXYZ.shape[1]
    if not is_synced:
        if count == 1:
            raise UsageError("batch normalisation over a single value; take a larger batch or a larger patch")
        return mean_C, variance_C, mean_C.new_full((), count)
    local = torch.cat([mean_C, variance_C, mean_C.new_full((1,), count)])
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, local)
    stacked = torch.stack(gathered)
    count_R1 = stacked[:, -1:]
    mean_RC, variance_RC = stacked[:, :-1].chunk(2, dim=1)
    share_R1 = count_R1 / count_R1.sum()
    mean_C = (share_R1 * mean_RC).sum(0)
    variance_C = (share_R1 * (variance_RC + (mean_RC - mean_C).square())).sum(0)
    return mean_C, variance_C, count_R1.sum()


def _local_statistics(x_NCXYZ: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of this rank's batch.

    torch's CPU kernel adds the voxels of a channels-last tensor one by one in float32: for two patches of 128x128x64
    the variance is off by 1.6e-3. Summed in groups of GROUP and merged, it is off by 1e-7 in the same time.
    """
    channels, dtype = x_NCXYZ.shape[1], at_least_float32(x_NCXYZ.dtype)
    if x_NCXYZ.is_meta:  # has no kernel for batch_norm_update_stats
        variance_C, mean_C = torch.var_mean(x_NCXYZ.to(dtype), (0, 2, 3, 4), unbiased=False)
        return mean_C, variance_C
    voxels_first = x_NCXYZ.permute(0, 2, 3, 4, 1)
    groups = 1
    if x_NCXYZ.device.type == "cpu" and voxels_first.is_contiguous():
        per_group = math.gcd(x_NCXYZ.numel() // channels, GROUP)
        groups = x_NCXYZ.numel() // channels // per_group
        x_NCXYZ = voxels_first.reshape(per_group, groups * channels)
    elif x_NCXYZ.is_cuda and voxels_first.is_contiguous():
        # torch's kernel for channels last is taken in 2D alone.
        x_NCXYZ = voxels_first.flatten(0, 1).permute(0, 3, 1, 2)
    running = x_NCXYZ.new_zeros(groups * channels, dtype=dtype)
    mean, variance = torch.batch_norm_update_stats(x_NCXYZ, running, running.clone(), 1.0)
    if groups == 1:
        return mean, variance
    mean_GC, variance_GC = mean.view(groups, channels), variance.view(groups, channels)
    mean_C = mean_GC.mean(0)
    return mean_C, (variance_GC + (mean_GC - mean_C).square()).mean(0)


def unbiased(variance_C: Tensor, count: Tensor) -> Tensor:
    return variance_C * (count / (count - 1))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class InstanceNorm3d(nn.Module):
    """Instance normalisation over X Y Z without scale and shift, computed in float32, stored in the input's type."""

    def __init__(self, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        dtype = at_least_float32(x_NCXYZ.dtype)
        return F.instance_norm(x_NCXYZ.to(dtype), eps=self.eps).to(x_NCXYZ.dtype)


class GroupNorm3d(nn.GroupNorm):
    """Group normalisation with learned scale and shift (Wu and He 2018), computed in float32."""

    def __init__(self, num_features: int) -> None:
        # Eight channels per group or somewhat more: with one, as in InstanceNorm, the bias in front of it would have no
        # effect.
        groups = next(n for n in range(max(1, num_features // 8), 0, -1) if num_features % n == 0)
        super().__init__(groups, num_features)

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        dtype = at_least_float32(x_NCXYZ.dtype)
        weight_C, bias_C = self.weight.to(dtype), self.bias.to(dtype)
        return F.group_norm(x_NCXYZ.to(dtype), self.num_groups, weight_C, bias_C, self.eps).to(x_NCXYZ.dtype)


class SpectralNorm(Float32Buffers):
    """Parametrization: the weight divided by its largest singular value (Miyato 2018), as torch's own in float32.

    One power iteration per training forward, also under no_grad; none in evaluation. u, v, the iteration and sigma are
    float32 in every precision; only the result is rounded. Several forwards may precede one backward, and the result
    can be differentiated twice.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, *, eps: float = 1e-12) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("u", torch.empty(0))
        self.register_buffer("v", torch.empty(0))
        self.reset(weight.detach(), None)

    @torch.no_grad()
    def reset(self, weight: Tensor, generator: torch.Generator | None) -> None:
        """Draw u and v (on the CPU: the same for every device and rank) and iterate on `weight`."""
        matrix = weight.to(at_least_float32(weight.dtype)).flatten(1)
        rows, columns = matrix.shape
        if weight.is_meta:
            self.u, self.v = matrix.new_empty(rows), matrix.new_empty(columns)
            return
        self.u = F.normalize(torch.randn(rows, generator=generator, device="cpu"), dim=0).to(matrix)
        self.v = F.normalize(torch.randn(columns, generator=generator, device="cpu"), dim=0).to(matrix)
        for _ in range(INITIAL_POWER_ITERATIONS):
            self._iterate(matrix)

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.to(at_least_float32(weight.dtype)).flatten(1)
        if self.training:
            self._iterate(matrix)
        # Later forwards overwrite the buffers in place; the backward of this one needs its own copy.
        u, v = self.u.clone(), self.v.clone()
        sigma = torch.dot(u, torch.mv(matrix, v))
        return (matrix / sigma).view_as(weight).to(weight.dtype)

    def iterate(self, weight: Tensor) -> None:
        """One power iteration."""
        self._iterate(weight.detach().to(at_least_float32(weight.dtype)).flatten(1))

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self.u.copy_(F.normalize(torch.mv(matrix, self.v), dim=0, eps=self.eps))
        self.v.copy_(F.normalize(torch.mv(matrix.t(), self.u), dim=0, eps=self.eps))
