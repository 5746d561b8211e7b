"""Batch normalisation, ReLU and the next convolution, with the convolution's input recomputed in backward.

torch saves two tensors of one size: the normalisation's input and the convolution's. Here the second is rebuilt exactly
from the first. On a CPU (width 512, 128x128x64, batch 1) a step's peak falls from 2.59 to 2.53 GiB and its CPU time
from 20.5 to 19.6 s, thanks to the ReLU in place. Shapes: N batch, C channel, X Y Z voxels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vesselgan.models.normalisation import (
    BatchNorm3d,
    at_least_float32,
    batch_norm_gradients,
    batch_statistics,
    unbiased,
)


def norm_relu_convolution(norm: nn.Module, x_NCXYZ: Tensor, convolution: nn.Module) -> Tensor:
    """convolution(relu(norm(x))); recomputes for a BatchNorm3d in training. One backward, no second derivative."""
    if not (isinstance(norm, BatchNorm3d) and norm.training and torch.is_grad_enabled()):
        return convolution(norm(x_NCXYZ).relu_())
    dtype = at_least_float32(x_NCXYZ.dtype)
    recomputed = _Recomputed()
    y_NCXYZ, mean_C, variance_C = _NormRelu.apply(
        x_NCXYZ, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps, norm.is_synced, recomputed
    )
    norm.update_running_stats(mean_C, variance_C)
    with torch.autograd.graph.saved_tensors_hooks(recomputed.pack, _unpack):
        return convolution(y_NCXYZ)


class _Recomputed:
    """The convolution's input, held as the tensors that it is computed from."""

    def __init__(self) -> None:
        self.inputs: tuple[Tensor, ...] = ()
        """x, mean, inverse standard deviation, scale, shift."""
        self.y_NCXYZ: Tensor | None = None
        self.storage = 0

    def pack(self, saved: Tensor) -> Any:
        return self if saved.untyped_storage()._cdata == self.storage else saved

    def compute(self) -> Tensor:
        """The convolution's input; kept until `release`, which follows in the same backward."""
        self.y_NCXYZ = _norm_relu(*self.inputs)
        return self.y_NCXYZ

    def release(self) -> Tensor:
        """The convolution's input; nothing is held afterwards, even if the graph lives on with its loss."""
        y_NCXYZ = self.compute() if self.y_NCXYZ is None else self.y_NCXYZ
        self.y_NCXYZ, self.inputs = None, ()
        return y_NCXYZ


def _unpack(saved: Any) -> Tensor:
    return saved.compute() if isinstance(saved, _Recomputed) else saved


def _norm_relu(x_NCXYZ: Tensor, mean_C: Tensor, inverse_sd_C: Tensor, scale_C: Tensor, shift_C: Tensor) -> Tensor:
    # torch.batch_norm: eps is in the variance already, and F.batch_norm of some versions refuses eps=0.
    y_NCXYZ = torch.batch_norm(x_NCXYZ, scale_C, shift_C, mean_C, inverse_sd_C.pow(-2), False, 0.0, 0.0, False)
    return y_NCXYZ.relu_()


class _NormRelu(torch.autograd.Function):
    """relu(norm(x)) in training, with the batch's mean and unbiased variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale_C: Tensor, shift_C: Tensor, eps: float, is_synced: bool, recomputed: _Recomputed
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean_C, biased_C, ctx.count = batch_statistics(x, is_synced)
        inverse_sd_C, variance_C = (biased_C + eps).rsqrt(), unbiased(biased_C, ctx.count)
        ctx.is_synced, ctx.recomputed = is_synced, recomputed
        recomputed.inputs = (x, mean_C, inverse_sd_C, scale_C, shift_C)
        y = _norm_relu(*recomputed.inputs)
        # The storage's identity, not its address: meta tensors have none.
        recomputed.storage = y.untyped_storage()._cdata
        ctx.save_for_backward(*recomputed.inputs)
        ctx.mark_non_differentiable(mean_C, variance_C)
        return y, mean_C, variance_C

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, dy: Tensor, _mean: Tensor, _variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, mean_C, inverse_sd_C, scale_C, _ = ctx.saved_tensors
        y = ctx.recomputed.release()
        # The masked gradient overwrites the recomputed input.
        dy = torch.ops.aten.threshold_backward.grad_input(dy, y, 0, grad_input=y)
        gradients = batch_norm_gradients(dy, x, scale_C, mean_C, inverse_sd_C, ctx.count, ctx.is_synced)
        return *gradients, None, None, None
