"""The critic: image and vessel label -> one score.

Shapes: N batch, C channel (0 image, 1 vessel label), X Y Z voxels.
"""

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vesselgan.core.errors import UsageError
from vesselgan.models.blocks import (
    Conv3d,
    InstanceNorm3d,
    Linear,
    check_patch_shape,
    freeze_bias,
    spectrally_normalised,
    transposed_convolution,
)
from vesselgan.models.generator import check_width
from vesselgan.models.normalisation import at_least_float32

NORMS = ("instance", "spectral")
NEGATIVE_SLOPE = 0.2


class Critic(nn.Module):
    """Four convolutions of stride 2 with leaky ReLU, then a linear score (layers of the authors' released code).

    Channels 2, width / 8, width / 4, width / 2, width. `norm="instance"`: InstanceNorm without scale and shift after
    every convolution (GP). `norm="spectral"`: spectral normalisation of every convolution's weight (SN).
    """

    def __init__(self, patch_shape: tuple[int, int, int], width: int, norm: str) -> None:
        super().__init__()
        if norm not in NORMS:
            raise UsageError(f"variant.critic_norm={norm}: choose one of {', '.join(NORMS)}")
        check_patch_shape(patch_shape, norm)
        check_width(width)
        channels = [2, width // 8, width // 4, width // 2, width]
        convolutions = [Conv3d(i, o, kernel_size=3, stride=2, padding=1) for i, o in pairwise(channels)]
        for convolution in convolutions:
            if norm == "instance":
                freeze_bias(convolution)
            else:
                spectrally_normalised(convolution)
        self.convolutions = nn.ModuleList(convolutions)
        self.norm = InstanceNorm3d() if norm == "instance" else nn.Identity()
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE)
        self.score = Linear(width * math.prod(int(side) // 16 for side in patch_shape), 1)

    def forward(self, patch_NCXYZ: Tensor) -> Tensor:
        """[N, C, X, Y, Z] of any floating type -> scores [N], float32 in every precision."""
        # The type of the bias: reading a spectral-norm weight would cost a power iteration.
        x_NCXYZ = patch_NCXYZ.to(self.score.bias.dtype)
        for convolution in self.convolutions:
            x_NCXYZ = self.activation(self.norm(convolution(x_NCXYZ)))
        features_NF = x_NCXYZ.flatten(1)
        dtype = at_least_float32(features_NF.dtype)
        weight_1F, bias_1 = self.score.weight.to(dtype), self.score.bias.to(dtype)
        return F.linear(features_NF.to(dtype), weight_1F, bias_1).squeeze(1)

    def input_gradient(self, patch_NCXYZ: Tensor, scale: float) -> Tensor:
        """Gradient of scale * sum(scores) by the patches, differentiable by the weights; in the type of the weights.

        Without normalisation of activations the gradient is a chain of transposed convolutions and the slopes of the
        leaky ReLUs. The slopes are constant almost everywhere, so the second derivative runs through that chain alone,
        not through the forward as with autograd: the same numbers for half of the work (measured on a CPU).
        """
        if not isinstance(self.norm, nn.Identity):
            patch_NCXYZ = patch_NCXYZ.detach().requires_grad_(True)
            return torch.autograd.grad(self(patch_NCXYZ).sum() * scale, patch_NCXYZ, create_graph=True)[0]
        convolutions = [cast(Conv3d, convolution) for convolution in self.convolutions]
        weights = [convolution.weight for convolution in convolutions]
        activations: list[Tensor] = []
        with torch.no_grad():
            x_NCXYZ = patch_NCXYZ.to(self.score.bias.dtype)
            for convolution, weight in zip(convolutions, weights, strict=True):
                activations.append(convolution._conv_forward(x_NCXYZ, weight, convolution.bias))
                x_NCXYZ = self.activation(activations[-1])
        weight_1CXYZ = (self.score.weight.to(at_least_float32(x_NCXYZ.dtype)) * scale).view(1, *x_NCXYZ.shape[1:])
        gradient_NCXYZ = weight_1CXYZ.to(x_NCXYZ.dtype).expand_as(x_NCXYZ)
        for x_NCXYZ, weight in zip(reversed(activations), reversed(weights), strict=True):
            gradient_NCXYZ = torch.ops.aten.leaky_relu_backward(gradient_NCXYZ, x_NCXYZ, NEGATIVE_SLOPE, False)
            gradient_NCXYZ = transposed_convolution(gradient_NCXYZ, weight, output_padding=1)
        return gradient_NCXYZ
