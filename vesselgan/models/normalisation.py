"""Normalisations whose statistics stay float32 (float64 for a float64 module) whatever the precision of the weights.

Shapes: N batch, C channel, X Y Z voxels.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from vesselgan.core.errors import UsageError

# Enough for a start: the estimate of sigma then lags behind the weight by a few per cent at most.
POWER_ITERATIONS_AT_START = 15
GROUP = 512
"""Values that one float32 accumulator takes in turn."""


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half and bfloat16, the type itself otherwise."""
    return torch.promote_types(dtype, torch.float32)


class KeepsFloat32Buffers(nn.Module):
    """A module whose floating buffers never become half: `.half()`, `.bfloat16()` and `.to(dtype)` pass them by.

    running_var overflows in half (its largest number is 65,504) and a power iteration in half does not converge.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if moved.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = buffer.to(moved.device)
        return self


class BatchNorm3d(KeepsFloat32Buffers):
    """Batch normalisation over N X Y Z with learned scale and shift (Ioffe and Szegedy 2015).

    In training the statistics are those of the global batch: with torch.distributed running on more than one rank they
    are merged, forward and backward, so that two ranks with half a batch each compute what one computes with the whole.
    Every rank must then take part in every training forward. In evaluation the running averages are used and a sample
    does not depend on its batch. They are plain means over the first 1 / momentum batches, exponential ones after:
    unlike torch's, they forget their start at once, so that a young generator can be evaluated too.
    """

    def __init__(self, num_features: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.spans_ranks = True
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
        self.take_in(mean_C, variance_C)
        return y_NCXYZ

    @property
    def is_synced(self) -> bool:
        """Whether a training forward needs every rank."""
        return self.spans_ranks and _world_size() > 1

    @torch.no_grad()
    def take_in(self, mean_C: Tensor, variance_C: Tensor) -> None:
        """A batch with an overflow is left out: one such would spoil the averages for good."""
        # Tensors throughout, so that no device is waited for.
        is_finite = mean_C.isfinite().all() & variance_C.isfinite().all()
        self.num_batches += is_finite
        share = self.num_batches.clamp_min(1).to(self.running_mean.dtype).reciprocal().clamp_min(self.momentum)
        for average_C, value_C in ((self.running_mean, mean_C), (self.running_var, variance_C)):
            average_C.lerp_(torch.where(is_finite, value_C.to(average_C.dtype), average_C), share)


class _BatchNorm(torch.autograd.Function):
    """Train-mode batch normalisation, over all ranks if asked. Returns output, mean, unbiased variance."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_NCXYZ: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, is_synced: bool
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
        ctx: FunctionCtx, dy_NCXYZ: Tensor, _mean: Tensor, _variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        return *batch_norm_gradients(dy_NCXYZ, *ctx.saved_tensors, ctx.count, ctx.is_synced), None, None


def batch_norm_gradients(
    dy_NCXYZ: Tensor,
    x_NCXYZ: Tensor,
    weight_C: Tensor,
    mean_C: Tensor,
    inverse_sd_C: Tensor,
    count: Tensor,
    is_synced: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of train-mode batch normalisation: input, scale, shift. A collective call where it spans the ranks.

    The scale's and shift's stay local then: the optimizer averages them over ranks like all others.
    """
    backward, every = torch.ops.aten.native_batch_norm_backward, [True, True, True]
    if not is_synced:
        return backward(dy_NCXYZ, x_NCXYZ, weight_C, None, None, mean_C, inverse_sd_C, True, 0.0, every)
    # As if the statistics were fixed; sums written out take twenty times as long on a CPU (2x32x64x64x32).
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
    # Sample by sample: float32 of all of a half tensor would double a step's memory.
    for dx, dy, x in zip(dx_NCXYZ, dy_NCXYZ, x_NCXYZ, strict=True):
        dx.copy_(torch.addcmul(shift, x.to(scale.dtype), slope).addcmul_(dy.to(scale.dtype), scale))
    return dx_NCXYZ, dweight_C, dbias_C


def batch_statistics(x_NCXYZ: Tensor, is_synced: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance (both at least float32) and count over N X Y Z.

    Over all ranks if `is_synced`: merged in rank order, so the same bits on every rank. A collective call then; no
    device is waited for. UsageError where there is one value alone, which normalisation would make zero.
    """
    mean_C, variance_C = _own_statistics(x_NCXYZ)
    count = x_NCXYZ.numel() // x_NCXYZ.shape[1]
    if not is_synced:
        if count == 1:
            raise UsageError("batch normalisation over a single value: take a larger batch or a larger patch")
        return mean_C, variance_C, mean_C.new_tensor(count)
    mine = torch.cat([mean_C, variance_C, mean_C.new_tensor([count])])
    all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_ranks, mine)
    stacked = torch.stack(all_ranks)
    count_R1 = stacked[:, -1:]
    mean_RC, variance_RC = stacked[:, :-1].chunk(2, dim=1)
    share_R1 = count_R1 / count_R1.sum()
    mean_C = (share_R1 * mean_RC).sum(0)
    variance_C = (share_R1 * (variance_RC + (mean_RC - mean_C).square())).sum(0)
    return mean_C, variance_C, count_R1.sum()


def _own_statistics(x_NCXYZ: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of this rank's part.

    A CPU's kernel adds the voxels of a channels-last tensor one after another in float32: with two patches of
    128x128x64 its variance is off by 1.6e-3. Summed in groups of GROUP and merged, it is off by 1e-7 in the same time.
    """
    channels, dtype = x_NCXYZ.shape[1], at_least_float32(x_NCXYZ.dtype)
    if x_NCXYZ.is_meta:  # for which there is no such kernel
        variance_C, mean_C = torch.var_mean(x_NCXYZ.to(dtype), (0, 2, 3, 4), unbiased=False)
        return mean_C, variance_C
    voxels_first = x_NCXYZ.permute(0, 2, 3, 4, 1)
    groups = 1
    if x_NCXYZ.device.type == "cpu" and voxels_first.is_contiguous():
        per_group = math.gcd(x_NCXYZ.numel() // channels, GROUP)
        groups = x_NCXYZ.numel() // channels // per_group
        x_NCXYZ = voxels_first.reshape(per_group, groups * channels)
    elif x_NCXYZ.is_cuda and voxels_first.is_contiguous():
        # torch's kernel for channels last knows 2D only; the general one takes ten times as long.
        x_NCXYZ = voxels_first.flatten(0, 1).permute(0, 3, 1, 2)
    seen = x_NCXYZ.new_zeros(groups * channels, dtype=dtype)
    mean, variance = torch.batch_norm_update_stats(x_NCXYZ, seen, seen.clone(), 1.0)
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
    """Instance normalisation over X Y Z without scale and shift, computed in float32 and stored as it came."""

    def __init__(self, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        dtype = at_least_float32(x_NCXYZ.dtype)
        return F.instance_norm(x_NCXYZ.to(dtype), eps=self.eps).to(x_NCXYZ.dtype)


class GroupNorm3d(nn.GroupNorm):
    """Group normalisation with learned scale and shift (Wu and He 2018), in float32: no sample knows of its batch."""

    def __init__(self, num_features: int) -> None:
        # Eight channels a group: with one alone, as InstanceNorm has, the bias in front of it would be idle.
        super().__init__(max(1, num_features // 8), num_features)

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        dtype = at_least_float32(x_NCXYZ.dtype)
        weight_C, bias_C = self.weight.to(dtype), self.bias.to(dtype)
        return F.group_norm(x_NCXYZ.to(dtype), self.num_groups, weight_C, bias_C, self.eps).to(x_NCXYZ.dtype)


class SpectralNorm(KeepsFloat32Buffers):
    """Parametrization: the weight over its largest singular value (Miyato 2018), as torch's own in float32.

    One power iteration per training forward, under no_grad too; none in evaluation. u, v, the iteration and sigma are
    float32 whatever the weight's type; only the result is rounded. Several forwards may come before one backward, and
    the result can be differentiated twice.
    """

    def __init__(self, weight: Tensor, *, eps: float = 1e-12) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("u", torch.empty(0))
        self.register_buffer("v", torch.empty(0))
        self.restart(weight.detach(), None)

    @torch.no_grad()
    def restart(self, weight: Tensor, generator: torch.Generator | None) -> None:
        """Draw u and v anew (on the CPU, so that every device and rank gets the same) and iterate on `weight`."""
        matrix = weight.to(at_least_float32(weight.dtype)).flatten(1)
        rows, columns = matrix.shape
        if weight.is_meta:
            self.u, self.v = matrix.new_empty(rows), matrix.new_empty(columns)
            return
        self.u = F.normalize(torch.randn(rows, generator=generator, device="cpu"), dim=0).to(matrix)
        self.v = F.normalize(torch.randn(columns, generator=generator, device="cpu"), dim=0).to(matrix)
        for _ in range(POWER_ITERATIONS_AT_START):
            self._iterate(matrix)

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.to(at_least_float32(weight.dtype)).flatten(1)
        if self.training:
            self._iterate(matrix)
        # Later forwards overwrite the buffers in place, and the backward of this one still needs its own.
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
