"""The segmentation network: the 3D U-Net of Hilbert 2020 (BRAVE-NET's baseline), which the paper used.

Its levels may be residual ones instead.

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

SLOPE = 0.01


class Unet(nn.Module):
    """Image in 0..255 -> probability of vessel, voxel by voxel.

    One level per entry of `filters` (paper: 32, 64, 128, 256), 2x2x2 max-pooling between them; two 1x1x1 convolutions
    at the bottom; on the way up nearest x2 upsampling, concatenation with the level's own output and the same level
    again; a 1x1x1 convolution and a sigmoid. The image is normalised by a BatchNorm in front, in float32 whatever the
    weights' type: bfloat16 would keep 8 bits of it. ReLU comes before the normalisation, as in the published network,
    so no convolution's bias is idle. Torch's BatchNorm defaults (Keras's averages need 460 steps to forget half).
    `network`, a key of LEVELS, says what a level is made of: `hilbert`, the published ones, or `residual`.
    """

    def __init__(self, filters: Sequence[int], dropout: float, *, network: str = "hilbert") -> None:
        super().__init__()
        level = LEVELS[network]
        self.input_norm = BatchNorm3d(1)
        # What scales all of the image at once is undone by the first level's normalisation: a gradient of rounding
        # noise, which Adam would turn into steps of full size.
        self.input_norm.weight.requires_grad_(False)
        steps = zip([1, *filters[:-1]], filters, strict=True)
        self.downs = nn.ModuleList(level(Conv3d(i, o, kernel_size=3, padding=1), o, dropout) for i, o in steps)
        self.bottom = nn.ModuleList(Conv3d(filters[-1], filters[-1], kernel_size=1) for _ in range(2))
        falling = list(reversed(filters))
        self.ups = nn.ModuleList(level(JoiningConv3d(low, high), high, dropout) for low, high in pairwise(falling))
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
        """What the first convolution takes: one tensor, or on the way up (low, skip)."""
        x = self.dropout(self.first_norm(self.first(*inputs).relu_()))
        return self.second_norm(self.second(x).relu_())


class ResidualLevel(Level):
    """Convolution, BatchNorm, leaky ReLU, dropout; convolution, BatchNorm; plus what came in, and leaky ReLU.

    The block of nnU-Net's and MONAI's residual U-Nets. What came in goes through a 1x1x1 convolution and a BatchNorm
    where its channels differ; on the way up it is the skip.
    """

    def __init__(self, first: Conv3d, channels: int, dropout: float) -> None:
        super().__init__(first, channels, dropout)
        self.shortcut: nn.Module = nn.Identity()
        if not isinstance(first, JoiningConv3d) and first.in_channels != channels:
            through = freeze_bias(Conv3d(first.in_channels, channels, kernel_size=1))
            self.shortcut = nn.Sequential(through, BatchNorm3d(channels))
        for convolution in (self.first, self.second):
            freeze_bias(convolution)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = self.dropout(F.leaky_relu(self.first_norm(self.first(*inputs)), SLOPE, inplace=True))
        x = self.second_norm(self.second(x)) + self.shortcut(inputs[-1])
        return F.leaky_relu(x, SLOPE, inplace=True)


class JoiningConv3d(UpsampleConv3d):
    """A 3x3x3 convolution of the concatenation [low upsampled x2 to the nearest, skip], which is never built.

    A convolution is linear in its channels, so it is the sum of one over each part; that over the upsampled part runs
    on the low-resolution grid. Exact, one weight and bias as ever: [N,L,X,Y,Z], [N,S,2X,2Y,2Z] -> [N,S,2X,2Y,2Z].
    """

    def __init__(self, low_channels: int, skip_channels: int) -> None:
        super().__init__(low_channels + skip_channels, skip_channels)

    def forward(self, low_NCXYZ: Tensor, skip_NCXYZ: Tensor) -> Tensor:
        low_weight, skip_weight = self.weight.tensor_split([low_NCXYZ.shape[1]], dim=1)
        raised_NCXYZ = self._conv_forward(low_NCXYZ, low_weight, self.bias)
        return raised_NCXYZ + Conv3d._conv_forward(self, skip_NCXYZ, skip_weight, None)


LEVELS: dict[str, type[Level]] = {"hilbert": Level, "residual": ResidualLevel}


@torch.no_grad()
def start_unet(unet: Unet, seed: int) -> None:
    """Glorot-uniform convolutions and zero biases (Keras's start, which the published network kept), from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for part in unet.modules():
        if isinstance(part, Conv3d):
            volume = math.prod(part.kernel_size)
            limit = math.sqrt(6 / (volume * (part.in_channels + part.out_channels)))
            part.weight.copy_(torch.empty(part.weight.shape).uniform_(-limit, limit, generator=generator))
            nn.init.zeros_(part.bias)


def check_unet_shape(patch_shape: Sequence[int], filters: Sequence[int]) -> None:
    """UsageError unless every axis can be halved between the levels and comes back to its size."""
    step = 2 ** (len(filters) - 1)
    if any(side % step for side in patch_shape):
        nearest = [max(1, round(side / step)) * step for side in patch_shape]
        raise UsageError(
            f"patches of {list(patch_shape)} with the {len(filters)} levels of unet.filters={list(filters)}: every "
            f"axis must divide by {step}; build shards with data.prepare.patch_shape={nearest} or take fewer levels"
        )


def _channels_last(x_N1XYZ: Tensor) -> Tensor:
    """The same voxels with the strides of channels_last_3d: with one channel that is a view, and torch's own
    conversion leaves the ambiguous strides as they are. Convolutions of few channels run 1.3 to 1.5 times as fast."""
    x = x_N1XYZ.contiguous()
    _, _, sx, sy, sz = x.stride()
    return x.as_strided(x.shape, (x[0].numel(), 1, sx, sy, sz)) if len(x) else x
