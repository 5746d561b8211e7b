"""Nearest x2 upsampling and a 3x3x3 convolution in one, on the low-resolution grid.

A copied voxel meets the sum of the taps that fall on it, so per axis an even output voxel is made of two input voxels
with the taps w0, w1 + w2, an odd one with w0 + w1, w2. That takes 8/27 of the multiply-adds, and the upsampled
activation never exists. The forms below are exact, borders and odd sizes included; they ask different things of the
machine.
Shapes: N batch, I and O channels in and out, X Y Z voxels.
"""

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from vesselgan.models.blocks import Conv3d, computing_dtype, transposed_convolution
from vesselgan.models.normalisation import at_least_float32

Form = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x [N,I,X,Y,Z], weight [O,I,3,3,3] at least float32, bias [O] in the type of x) -> [N,O,2X,2Y,2Z]."""
PHASES = tuple(product((0, 1), repeat=3))
"""Even or odd output voxels along Z, Y, X, in the order of `_phase_taps`."""


class UpsampleConv3d(Conv3d):
    """[N,I,X,Y,Z] -> [N,O,2X,2Y,2Z]; the parameter stays the 3x3x3 weight, whatever the form."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = computing_dtype(input)
        bias = None if bias is None else bias.to(dtype)
        # Taps are summed in float32 and rounded once.
        weight = weight.to(at_least_float32(weight.dtype))
        return FASTEST[input.device.type](input.to(dtype), weight, bias).to(input.dtype)


def transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One transposed convolution of stride 2 whose four taps per axis are w2, w1 + w2, w0 + w1, w0."""
    for axis in (2, 3, 4):
        w0, w1, w2 = weight.unbind(axis)
        weight = torch.stack([w2, w1 + w2, w0 + w1, w0], axis)
    return transposed_convolution(x, weight.transpose(0, 1), bias)


def phases(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Eight convolutions with 2x2x2 taps, one for each parity of the output voxel, then a shuffle."""
    taps, padded = _phase_taps(weight).to(x.dtype), F.pad(x, (1,) * 6)
    sides = x.shape[2:]
    parts = []
    for phase, (oz, oy, ox) in enumerate(PHASES):
        seen = padded[:, :, ox : ox + sides[0] + 1, oy : oy + sides[1] + 1, oz : oz + sides[2] + 1]
        parts.append(F.conv3d(seen, taps[:, phase], bias))
    return _shuffled(torch.stack(parts, 2))


def shuffle(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One convolution with 2x2x2 taps into eight times the channels, on a grid one voxel larger, then a shuffle."""
    taps = _phase_taps(weight).to(x.dtype).flatten(0, 1)
    bias = None if bias is None else bias.repeat_interleave(len(PHASES))
    all_phases = F.conv3d(x, taps, bias, padding=1).unflatten(1, (-1, len(PHASES)))
    (nx, ny, nz) = x.shape[2:]
    parts = [
        all_phases[:, :, phase, ox : ox + nx, oy : oy + ny, oz : oz + nz] for phase, (oz, oy, ox) in enumerate(PHASES)
    ]
    return _shuffled(torch.stack(parts, 2))


def _phase_taps(weight: Tensor) -> Tensor:
    """[O,I,3,3,3] -> [O,8,I,2,2,2], the parity along Z counting slowest."""
    taps = weight.unsqueeze(1)
    for axis in (3, 4, 5):
        w0, w1, w2 = taps.unbind(axis)
        even, odd = torch.stack([w0, w1 + w2], axis), torch.stack([w0 + w1, w2], axis)
        taps = torch.stack([even, odd], 1).flatten(1, 2)
    return taps


def _shuffled(parts_NO8XYZ: Tensor) -> Tensor:
    (nx, ny, nz) = parts_NO8XYZ.shape[3:]
    by_axis = parts_NO8XYZ.unflatten(2, (2, 2, 2)).permute(0, 1, 5, 4, 6, 3, 7, 2)
    return by_axis.reshape(*parts_NO8XYZ.shape[:2], 2 * nx, 2 * ny, 2 * nz)


FORMS: dict[str, Form] = {"transposed": transposed, "phases": phases, "shuffle": shuffle}
FASTEST: dict[str, Form] = {"cpu": transposed, "cuda": transposed, "meta": transposed}
"""Per device, as `launch/benchmark.py target=forms` measures it. CPU (AVX-512, one thread): transposed wins in all
three layers, at widths 128 and 512, in float32 and bfloat16, forward alone and with backward, by 1.04 to 2.8 times.
CUDA: not measured yet."""
