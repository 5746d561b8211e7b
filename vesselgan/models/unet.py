"""The segmentation network: the 3D U-Net of Hilbert 2020 (BRAVE-NET's baseline), or its residual variant.

Shapes: N batch, C channel, X Y Z voxels.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vesselgan.core.errors import UsageError
from vesselgan.models.blocks import BatchNorm3d, Conv3d, freeze_bias
from vesselgan.models.upsampling import UpsampleConv3d

NEGATIVE_SLOPE = 0.01


class Unet(nn.Module):
    """Image in 0..255 -> probability of vessel per voxel.

    One level per entry of `filters` (paper: 32, 64, 128, 256) with 2x2x2 max-pooling between them; two 1x1x1
    convolutions at the bottom; in the decoder nearest x2 upsampling, concatenation with the skip and a level; a 1x1x1
    convolution and a sigmoid. A BatchNorm in front normalises the image in float32: bfloat16 would keep 8 bits of it.
    ReLU precedes the normalisation, as in the published network, so every convolution's bias has an effect. BatchNorm
    has torch's defaults (Keras's running averages have a half-life of 460 steps). `network` is a key of LEVELS.
    """

    def __init__(self, filters: Sequence[int], dropout: float, *, network: str = "hilbert") -> None:
        super().__init__()
        level = LEVELS[network]
        self.input_norm = BatchNorm3d(1)
        # The first level's normalisation undoes any scale of the image: its gradient is rounding noise, which Adam
        # would scale up to full steps.
        self.input_norm.weight.requires_grad_(False)
        pairs = zip([1, *filters[:-1]], filters, strict=True)
        self.downs = nn.ModuleList(level(Conv3d(i, o, kernel_size=3, padding=1), o, dropout) for i, o in pairs)
        self.bottom = nn.ModuleList(Conv3d(filters[-1], filters[-1], kernel_size=1) for _ in range(2))
        reversed_filters = list(reversed(filters))
        self.ups = nn.ModuleList(
            level(UpsampleConcatConv3d(low, high), high, dropout) for low, high in pairwise(reversed_filters)
        )
        self.last = Conv3d(filters[0], 1, kernel_size=1)

    def forward(self, image_NCXYZ: Tensor) -> Tensor:
        """[N, 1, X, Y, Z] of any floating type -> float32 in [0, 1] of the same shape; see `check_unet_shape`."""
        x = _channels_last(self.input_norm(image_NCXYZ.float()).to(self.last.weight.dtype))
        skips = []
        for depth, level in enumerate(self.downs):
            x = level(F.max_pool3d(x, 2) if depth else x)
            skips.append(x)
        for convolution in self.bottom:
            x = convolution(x).relu()
        for level, skip in zip(self.ups, reversed(skips[:-1]), strict=True):
            x = level(x, skip)
        return self.last(x).float().sigmoid()


class Level(nn.Module):
    """3x3x3 convolution (`first`), ReLU, BatchNorm, dropout; convolution, ReLU, BatchNorm."""

    def __init__(self, first: Conv3d, channels: int, dropout: float) -> None:
        super().__init__()
        self.first = first
        self.first_norm = BatchNorm3d(channels)
        self.second = Conv3d(channels, channels, kernel_size=3, padding=1)
        self.second_norm = BatchNorm3d(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, *inputs: Tensor) -> Tensor:
        """`inputs` are those of `first`: one tensor, or (low, skip) in the decoder."""
        x = self.dropout(self.first_norm(self.first(*inputs).relu_()))
        return self.second_norm(self.second(x).relu_())


class ResidualLevel(Level):
    """Convolution, BatchNorm, leaky ReLU, dropout; convolution, BatchNorm; plus the shortcut; leaky ReLU.

    The block of nnU-Net's and MONAI's residual U-Nets. The shortcut is the input, through a 1x1x1 convolution and a
    BatchNorm where its channels differ; in the decoder it is the skip.
    """

    def __init__(self, first: Conv3d, channels: int, dropout: float) -> None:
        super().__init__(first, channels, dropout)
        self.shortcut: nn.Module = nn.Identity()
        if not isinstance(first, UpsampleConcatConv3d) and first.in_channels != channels:
            projection = freeze_bias(Conv3d(first.in_channels, channels, kernel_size=1))
            self.shortcut = nn.Sequential(projection, BatchNorm3d(channels))
        for convolution in (self.first, self.second):
            freeze_bias(convolution)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = self.dropout(F.leaky_relu(self.first_norm(self.first(*inputs)), NEGATIVE_SLOPE, inplace=True))
        x = self.second_norm(self.second(x)) + self.shortcut(inputs[-1])
        return F.leaky_relu(x, NEGATIVE_SLOPE, inplace=True)


class UpsampleConcatConv3d(UpsampleConv3d):
    """A 3x3x3 convolution of the concatenation [nearest x2 upsampling of low, skip], without building it.

    [N,L,X,Y,Z], [N,S,2X,2Y,2Z] -> [N,S,2X,2Y,2Z]. A convolution is linear in its input channels, so it is the sum of
    two, the one of `low` on the low-resolution grid. Exact, with the one weight and bias of the plain convolution.
    """

    def __init__(self, low_channels: int, skip_channels: int) -> None:
        super().__init__(low_channels + skip_channels, skip_channels)

    def forward(self, low_NCXYZ: Tensor, skip_NCXYZ: Tensor) -> Tensor:  # type: ignore[override]
        low_weight, skip_weight = self.weight.tensor_split([low_NCXYZ.shape[1]], dim=1)
        upsampled_NCXYZ = self._conv_forward(low_NCXYZ, low_weight, self.bias)
        return upsampled_NCXYZ + Conv3d._conv_forward(self, skip_NCXYZ, skip_weight, None)


LEVELS: dict[str, type[Level]] = {"hilbert": Level, "residual": ResidualLevel}


@torch.no_grad()
def init_unet_weights(unet: Unet, seed: int) -> None:
    """Glorot-uniform convolutions and zero biases (Keras's defaults, which the published network uses), from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for layer in unet.modules():
        if isinstance(layer, Conv3d):
            num_taps = math.prod(layer.kernel_size)
            limit = math.sqrt(6 / (num_taps * (layer.in_channels + layer.out_channels)))
            layer.weight.copy_(torch.empty(layer.weight.shape).uniform_(-limit, limit, generator=generator))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def check_unet_shape(patch_shape: Sequence[int], filters: Sequence[int]) -> None:
    """UsageError unless every axis can be halved between all levels."""
    divisor = 2 ** (len(filters) - 1)
    if any(side % divisor for side in patch_shape):
        nearest = [max(1, round(side / divisor)) * divisor for side in patch_shape]
        raise UsageError(
            f"patches of {list(patch_shape)} with the {len(filters)} levels of unet.filters={list(filters)}: every "
            f"axis must divide by {divisor}; build shards with data.prepare.patch_shape={nearest} or take fewer levels"
        )


def _channels_last(x_N1XYZ: Tensor) -> Tensor:
    """A view with the strides of channels_last_3d, which torch's own conversion does not set for one channel.

    Convolutions of few channels are 1.3 to 1.5 times faster with it.
    """
    x = x_N1XYZ.contiguous()
    _, _, sx, sy, sz = x.stride()
    return x.as_strided(x.shape, (x[0].numel(), 1, sx, sy, sz)) if len(x) else x
