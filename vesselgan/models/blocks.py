"""Layers shared by all networks, the switch for gradients, and weight initialisation.

On a CPU, convolutions and linear layers compute half in float32 and store half: native half convolutions are hundreds
of times slower there. The same holds for bfloat16 on a CPU without AVX-512.
Shapes: N batch, C channel, X Y Z voxels.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vesselgan.core.errors import UsageError
from vesselgan.models.normalisation import BatchNorm3d, InstanceNorm3d, SpectralNorm, at_least_float32

__all__ = [
    "BatchNorm3d",
    "Conv3d",
    "InstanceNorm3d",
    "Linear",
    "NarrowConv3d",
    "SpectralNorm",
    "channels_last_on_gpu",
    "check_patch_shape",
    "compute_dtype",
    "freeze_bias",
    "init_weights",
    "iterate_spectral_norms",
    "restore_spectral_vectors",
    "set_trainable",
    "spectral_vectors",
    "spectrally_normalised",
    "transposed_convolution",
]

PATCH_MULTIPLE = 16
INIT_SD = 0.05


class Conv3d(nn.Conv3d):
    """torch's 3D convolution, computed in `compute_dtype`.

    On a GPU it runs in channels_last_3d: the critic's first layer takes 0.13 ms instead of 0.36 ms (H100, fp16, 2 to 64
    channels, 128x128x64, batch 4).
    """

    has_frozen_bias: bool = False

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = compute_dtype(input)
        bias = self._bias_to_add(bias, dtype)
        x, weight = channels_last_on_gpu(input.to(dtype)), channels_last_on_gpu(weight.to(dtype))
        return super()._conv_forward(x, weight, bias).to(input.dtype)

    def _bias_to_add(self, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        # A frozen bias is zero; adding it would read and write every activation once more.
        return None if bias is None or self.has_frozen_bias else bias.to(dtype)


class Linear(nn.Linear):
    """torch's linear layer, computed in `compute_dtype`."""

    def forward(self, input: Tensor) -> Tensor:
        dtype = compute_dtype(input)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(input.to(dtype), self.weight.to(dtype), bias).to(input.dtype)


def transposed_convolution(
    x_NIXYZ: Tensor, weight_IOXYZ: Tensor, bias: Tensor | None = None, *, stride: int = 2, output_padding: int = 0
) -> Tensor:
    """Transposed convolution of padding 1, computed in `compute_dtype`."""
    dtype = compute_dtype(x_NIXYZ)
    bias = None if bias is None else bias.to(dtype)
    x, weight = channels_last_on_gpu(x_NIXYZ.to(dtype)), channels_last_on_gpu(weight_IOXYZ.to(dtype))
    y = F.conv_transpose3d(x, weight, bias, stride=stride, padding=1, output_padding=output_padding)
    return y.to(x_NIXYZ.dtype)


class NarrowConv3d(Conv3d):
    """A 3x3x3 convolution with padding 1 into few channels, computed as 2x2x2 blocks of output voxels.

    Exact; the parameter stays the 3x3x3 weight. CPUs and tensor cores compute 16 channels at once and idle in 14 of
    them for two. So one stride-2 convolution with 4x4x4 taps (37 of them zero) yields eight times the channels, which
    are shuffled into voxels. Forward and backward of the generator's last layer on a CPU thread: 2.2 times faster in
    float32 and 1.7 in bfloat16 (16 to 2 channels, 32x32x16), 1.3 and 1.0 (64 to 2 channels, 128x128x64).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.is_meta or any(side % 2 for side in input.shape[2:]):  # meta: FLOPs are counted there
            return super()._conv_forward(input, weight, bias)
        dtype = compute_dtype(input)
        offsets = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
        # In float32: the gradients of the eight copies are added before they are rounded.
        weight = weight.to(at_least_float32(weight.dtype))
        shifted = [F.pad(weight, (z, 1 - z, y, 1 - y, x, 1 - x)) for x, y, z in offsets]
        taps = torch.stack(shifted, 1).flatten(0, 1).to(dtype)
        bias = self._bias_to_add(bias, dtype)
        bias = None if bias is None else bias.repeat_interleave(8)
        x, taps = channels_last_on_gpu(input.to(dtype)), channels_last_on_gpu(taps)
        blocks = F.conv3d(x, taps, bias, stride=2, padding=1)
        # N, (O, 2, 2, 2), X/2, Y/2, Z/2 -> N, O, X, Y, Z. Contiguous first: the shuffle reads in tiny strides.
        blocks = blocks.to(input.dtype).contiguous().unflatten(1, (-1, 2, 2, 2))
        return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(len(input), -1, *input.shape[2:])


def channels_last_on_gpu(x_NCXYZ: Tensor) -> Tensor:
    """On a GPU the same values in channels_last_3d, the layout of its tensor cores; elsewhere the tensor itself."""
    return x_NCXYZ.contiguous(memory_format=torch.channels_last_3d) if x_NCXYZ.is_cuda else x_NCXYZ


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32 for half on a CPU and for bfloat16 on a CPU without AVX-512; otherwise the tensor's own type."""
    is_slow = x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and not _cpu_has_bfloat16())
    return torch.float32 if is_slow and x.device.type == "cpu" else x.dtype


@cache
def _cpu_has_bfloat16() -> bool:
    # Without it torch rounds every partial sum to bfloat16: with AVX2 a transposed convolution has twice the error and
    # takes four times as long.
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def freeze_bias(convolution: Conv3d) -> Conv3d:
    """Set the bias of a convolution in front of a normalisation over X Y Z to zero and never train it.

    Such a bias has no effect, and its gradient is rounding noise that Adam scales up to full steps. It stays a
    parameter because the paper's Table 2 counts it.
    """
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    convolution.bias.requires_grad_(False)
    convolution.has_frozen_bias = True
    return convolution


def spectrally_normalised(convolution: Conv3d) -> Conv3d:
    """Its weight is divided by its spectral norm from now on (SN)."""
    parametrize.register_parametrization(convolution, "weight", SpectralNorm(convolution.weight))
    return convolution


def set_trainable(module: nn.Module, is_trainable: bool) -> None:
    """Switch gradients of all parameters of the module; biases frozen by `freeze_bias` stay off."""
    frozen = {id(layer.bias) for layer in module.modules() if getattr(layer, "has_frozen_bias", False)}
    for parameter in module.parameters():
        parameter.requires_grad_(is_trainable and id(parameter) not in frozen)


def spectral_vectors(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Copies of u and v of every spectral norm."""
    return [(norm.u.clone(), norm.v.clone()) for norm, _ in _spectral_norms(module)]


def restore_spectral_vectors(module: nn.Module, vectors: list[tuple[Tensor, Tensor]]) -> None:
    """Restore what `spectral_vectors` returned: the next forwards repeat the same power iterations."""
    for (norm, _), (u, v) in zip(_spectral_norms(module), vectors, strict=True):
        norm.u.copy_(u)
        norm.v.copy_(v)


def iterate_spectral_norms(critic: nn.Module) -> None:
    """Take one power iteration in every layer, as a forward in training mode does; one in evaluation mode does not."""
    for norm, weight in _spectral_norms(critic):
        norm.iterate(weight)


def _spectral_norms(module: nn.Module) -> Iterator[tuple[SpectralNorm, Tensor]]:
    """Every spectral norm with the weight that it normalises."""
    for layer in module.modules():
        if hasattr(layer, "parametrizations"):
            parametrizations: Any = layer.parametrizations
            for norm in parametrizations.weight:
                yield norm, parametrizations.weight.original


@torch.no_grad()
def init_weights(module: nn.Module, seed: int) -> None:
    """Initialise the weights of a generator or critic from a seed, the same on every rank and device.

    Convolution weights and batch-norm scales: normal, mean 0, SD 0.05 (the authors' code). Under spectral norm this
    sets the original weight (the authors' code silently sets nothing), and u and v are drawn again. Linear weights:
    normal with SD 1 / sqrt(3 * inputs), that of torch's default, which the authors kept. Biases and shifts: zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            spectral_norms = list(_spectral_norms(layer))
            weight = spectral_norms[0][1] if spectral_norms else layer.weight
            _draw_normal(weight, INIT_SD, generator)
            for norm, _ in spectral_norms:
                norm.reset(weight, generator)
        elif isinstance(layer, nn.Linear):
            _draw_normal(layer.weight, 1 / math.sqrt(3 * layer.in_features), generator)
        elif isinstance(layer, BatchNorm3d):
            _draw_normal(layer.weight, INIT_SD, generator)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _draw_normal(parameter: Tensor, sd: float, generator: torch.Generator) -> None:
    if not parameter.is_meta:
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, sd, generator=generator))


def check_patch_shape(patch_shape: tuple[int, int, int], norm: str = "spectral") -> None:
    """Raise UsageError unless generator and critic can be built for this patch.

    The critic halves every axis four times, so each must divide by 16. With InstanceNorm (`norm="instance"`) more than
    one voxel must be left: the last layer would normalise a single voxel to zero.
    """
    shape = [int(side) for side in patch_shape]
    if len(shape) != 3 or min(shape) < 1:
        raise UsageError(f"patch_shape={shape}: three positive sizes are needed, for example [128, 128, 64]")
    if any(side % PATCH_MULTIPLE for side in shape):
        below = [max(side // PATCH_MULTIPLE, 1) * PATCH_MULTIPLE for side in shape]
        above = [math.ceil(side / PATCH_MULTIPLE) * PATCH_MULTIPLE for side in shape]
        if norm == "instance" and math.prod(below) == PATCH_MULTIPLE**3:
            below[0] = 2 * PATCH_MULTIPLE
        if norm == "instance" and math.prod(above) == PATCH_MULTIPLE**3:
            above[0] = 2 * PATCH_MULTIPLE
        sizes = f"{below}" if below == above else f"{below} or {above}"
        raise UsageError(f"patch_shape={shape}: every axis must divide by {PATCH_MULTIPLE}; nearest that work: {sizes}")
    if norm == "instance" and math.prod(shape) == PATCH_MULTIPLE**3:
        larger = [2 * PATCH_MULTIPLE, PATCH_MULTIPLE, PATCH_MULTIPLE]
        raise UsageError(
            f"patch_shape={shape} with critic_norm=instance leaves one voxel to normalise, which is always zero; "
            f"use {larger} or more, or critic_norm=spectral"
        )
