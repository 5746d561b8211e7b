"""What both players are made of: layers, which parameters train, how weights start.

Half on a CPU: convolutions and linear layers compute in float32 and store half, as tensor cores accumulate (native
half convolutions there are hundreds of times slower); so does bfloat16 on a CPU without AVX-512.
Shapes: N batch, C channel, X Y Z voxels.
"""

import math
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    "computing_dtype",
    "freeze_bias",
    "iterate_spectral_norms",
    "restore_spectral_vectors",
    "set_trainable",
    "spectral_vectors",
    "init_weights",
    "transposed_convolution",
]

PATCH_MULTIPLE = 16
START_SD = 0.05


class Conv3d(nn.Conv3d):
    """torch's 3D convolution, in float32 inside where the CPU wants it (`computing_dtype`).

    On a GPU in channels_last_3d: the critic's first layer takes 0.13 ms so and 0.36 ms contiguous (H100, fp16,
    2 to 64 channels, 128x128x64, batch 4).
    """

    has_frozen_bias = False

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = computing_dtype(input)
        bias = self._bias_to_add(bias, dtype)
        x, weight = channels_last_on_gpu(input.to(dtype)), channels_last_on_gpu(weight.to(dtype))
        return super()._conv_forward(x, weight, bias).to(input.dtype)

    def _bias_to_add(self, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        # A frozen one is zero, and adding it would read and write every activation once more.
        return None if bias is None or self.has_frozen_bias else bias.to(dtype)


class Linear(nn.Linear):
    """torch's linear layer, in float32 inside where the CPU wants it (`computing_dtype`)."""

    def forward(self, input: Tensor) -> Tensor:
        dtype = computing_dtype(input)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(input.to(dtype), self.weight.to(dtype), bias).to(input.dtype)


def transposed_convolution(
    x_NIXYZ: Tensor, weight_IOXYZ: Tensor, bias: Tensor | None = None, *, output_padding: int = 0
) -> Tensor:
    """Transposed convolution of stride 2 and padding 1, in float32 inside where the CPU wants it."""
    dtype = computing_dtype(x_NIXYZ)
    bias = None if bias is None else bias.to(dtype)
    x, weight = channels_last_on_gpu(x_NIXYZ.to(dtype)), channels_last_on_gpu(weight_IOXYZ.to(dtype))
    y = F.conv_transpose3d(x, weight, bias, stride=2, padding=1, output_padding=output_padding)
    return y.to(x_NIXYZ.dtype)


class NarrowConv3d(Conv3d):
    """A 3x3x3 convolution with padding 1 into a few channels, as many voxels at a time as make them eight times more.

    Exact. CPUs and tensor cores compute 16 channels at once and would idle in 14 of them for two, so every 2x2x2 block
    of voxels is one voxel of a convolution with stride 2 and 4x4x4 taps, 37 of them zero. Measured on the generator's
    last layer (16 to 2 channels, 32x32x16, batch 8, one thread), forward and backward: 2.2 times faster in float32, 1.7
    in bfloat16; at 64 to 2 channels, 128x128x64: 1.3 and 1.0. The parameter stays the 3x3x3 weight.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.is_meta or any(side % 2 for side in input.shape[2:]):  # meta: what must be computed is counted there
            return super()._conv_forward(input, weight, bias)
        dtype = computing_dtype(input)
        places = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
        # In float32, so that the eight copies' gradients are added before they are rounded.
        weight = weight.to(at_least_float32(weight.dtype))
        shifted = [F.pad(weight, (z, 1 - z, y, 1 - y, x, 1 - x)) for x, y, z in places]
        taps = torch.stack(shifted, 1).flatten(0, 1).to(dtype)
        bias = self._bias_to_add(bias, dtype)
        bias = None if bias is None else bias.repeat_interleave(8)
        x, taps = channels_last_on_gpu(input.to(dtype)), channels_last_on_gpu(taps)
        blocks = F.conv3d(x, taps, bias, stride=2, padding=1)
        # N, (O, 2, 2, 2), X/2, Y/2, Z/2 -> N, O, X, Y, Z; contiguous first, or the shuffle reads in tiny steps.
        blocks = blocks.to(input.dtype).contiguous().unflatten(1, (-1, 2, 2, 2))
        return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(len(input), -1, *input.shape[2:])


def channels_last_on_gpu(x_NCXYZ: Tensor) -> Tensor:
    """The same values in the layout of a GPU's tensor cores; as it is elsewhere."""
    return x_NCXYZ.contiguous(memory_format=torch.channels_last_3d) if x_NCXYZ.is_cuda else x_NCXYZ


def computing_dtype(x: Tensor) -> torch.dtype:
    """float32 for half on a CPU, and for bfloat16 on one without AVX-512; the tensor's own type otherwise."""
    is_slow = x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and not _cpu_has_bfloat16())
    return torch.float32 if is_slow and x.device.type == "cpu" else x.dtype


@cache
def _cpu_has_bfloat16() -> bool:
    # Elsewhere torch rounds every partial sum to bfloat16: a transposed convolution then errs twice as much, and takes
    # four times as long (measured with AVX2).
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def freeze_bias(convolution: nn.Conv3d) -> nn.Conv3d:
    """Set the bias to zero for good; for a convolution in front of a normalisation over X Y Z.

    Such a bias does nothing, and its gradient is rounding noise that Adam would turn into steps of full size.
    It exists because the paper's Table 2 counts it.
    """
    nn.init.zeros_(convolution.bias)
    convolution.bias.requires_grad_(False)
    convolution.has_frozen_bias = True
    return convolution


def set_trainable(module: nn.Module, is_trainable: bool) -> None:
    """Switch gradients for all of the module's parameters, except biases frozen by `freeze_bias`: those stay off."""
    frozen = {id(part.bias) for part in module.modules() if getattr(part, "has_frozen_bias", False)}
    for parameter in module.parameters():
        parameter.requires_grad_(is_trainable and id(parameter) not in frozen)


def spectral_vectors(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Copies of the power iterations' u and v, layer by layer."""
    return [(step.u.clone(), step.v.clone()) for step, _ in _spectral_norms(module)]


def restore_spectral_vectors(module: nn.Module, vectors: list[tuple[Tensor, Tensor]]) -> None:
    """Put back what `spectral_vectors` gave: the next forwards take the same power iterations again."""
    for (step, _), (u, v) in zip(_spectral_norms(module), vectors, strict=True):
        step.u.copy_(u)
        step.v.copy_(v)


def iterate_spectral_norms(critic: nn.Module) -> None:
    """One power iteration in every layer; none in forwards until `critic.train()`: they are one forward, in turns.

    Evaluation mode means nothing else to a critic.
    """
    critic.eval()
    for step, weight in _spectral_norms(critic):
        step.iterate(weight)


def _spectral_norms(module: nn.Module) -> Iterator[tuple[SpectralNorm, Tensor]]:
    """Every spectral norm with the weight that it divides."""
    for part in module.modules():
        for step in part.parametrizations.weight if hasattr(part, "parametrizations") else ():
            yield step, part.parametrizations.weight.original


@torch.no_grad()
def init_weights(module: nn.Module, seed: int) -> None:
    """One seeded start for every variant, the same on every rank and device.

    Convolution weights and batch-norm scales: normal, mean 0, SD 0.05 (the authors' code). Under spectral norm it acts
    on the original weight, where the authors' silently did nothing, and u and v start anew. Linear weights: normal with
    SD 1 / sqrt(3 * inputs), the spread of torch's own start, which the authors kept (0.051 for a latent of 128).
    All biases and shifts: zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            weight = part.parametrizations.weight.original if hasattr(part, "parametrizations") else part.weight
            _draw_normal(weight, START_SD, generator)
            for step in part.parametrizations.weight if hasattr(part, "parametrizations") else ():
                step.restart(weight, generator)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            _draw_normal(part.weight, 1 / math.sqrt(3 * part.in_features), generator)
            nn.init.zeros_(part.bias)
        elif isinstance(part, BatchNorm3d):
            _draw_normal(part.weight, START_SD, generator)
            nn.init.zeros_(part.bias)


def _draw_normal(parameter: Tensor, sd: float, generator: torch.Generator) -> None:
    if not parameter.is_meta:
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, sd, generator=generator))


def check_patch_shape(patch_shape: tuple[int, int, int], norm: str = "spectral") -> None:
    """Raise UsageError unless both players can be built for this patch.

    The critic halves every axis four times, so each must divide by 16; with InstanceNorm (`norm="instance"`) more than
    one voxel must be left, or the last layer would normalise single voxels to zero.
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
