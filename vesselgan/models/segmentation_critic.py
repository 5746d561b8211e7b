"""The critic of a GAN that is given labels: a segmentation network that says where an image is made (Schönfeld 2021).

One score per patch, on image and label together, went flat: after some hundred steps it scored all alike. One that must
find in the image what was given tells the generator at every voxel where it failed (OASIS). Not the paper's.
Shapes: N batch, C channel (0 image, 1 vessel label, 2 tissue map where it is given), K class, X Y Z voxels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vesselgan.models.blocks import Conv3d, check_patch_shape, spectrally_normalised
from vesselgan.models.critic import NEGATIVE_SLOPE
from vesselgan.models.generator import check_width
from vesselgan.models.normalisation import at_least_float32

NUM_CLASSES = {1: 2, 2: 4}
"""By what is given: background and vessel; outside, head, brain and vessel."""


class SegmentationCritic(nn.Module):
    """A U-Net of four levels, spectrally normalised: image -> logits of every voxel's class and of "made".

    Channels width / 2, width, and twice 2 width. Every level but the finest, which costs the most, adds a second
    convolution to the first one's output; on the way up what comes from below is added, not stacked.
    """

    def __init__(self, patch_shape: tuple[int, int, int], width: int, num_given: int) -> None:
        """width: of the generator. num_given: 1 for a label, 2 for label and tissue map."""
        super().__init__()
        check_patch_shape(patch_shape)
        check_width(width)
        self.num_given, self.num_classes = num_given, NUM_CLASSES[num_given]
        channels = [width // 2, width, 2 * width, 2 * width]
        inputs, strides = [1, *channels[:-1]], [1, 2, 2, 2]
        self.downs = nn.ModuleList(_convolution(*sizes) for sizes in zip(inputs, channels, strides, strict=True))
        self.seconds = nn.ModuleList(_convolution(size, size) for size in channels[1:])
        self.lifts = nn.ModuleList(
            spectrally_normalised(Conv3d(low, high, kernel_size=1))
            for high, low in zip(channels[:-1], channels[1:], strict=True)
        )
        self.ups = nn.ModuleList(_convolution(size, size) for size in channels[:-1])
        self.classes = Conv3d(channels[0], self.num_classes + 1, kernel_size=1)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE)

    def forward(self, patch_NCXYZ: Tensor) -> Tensor:
        """[N, C, X, Y, Z] of any floating type -> logits [N, K + 1, X, Y, Z], at least float32. Reads the image."""
        x_NCXYZ = patch_NCXYZ[:, :1].to(self.classes.weight.dtype)
        x_NCXYZ = self.activation(self.downs[0](x_NCXYZ))
        skips = [x_NCXYZ]
        for down, second in zip(self.downs[1:], self.seconds, strict=True):
            x_NCXYZ = self.activation(down(x_NCXYZ))
            x_NCXYZ = x_NCXYZ + self.activation(second(x_NCXYZ))
            skips.append(x_NCXYZ)
        for lift, up, skip_NCXYZ in reversed(list(zip(self.lifts, self.ups, skips[:-1], strict=True))):
            x_NCXYZ = F.interpolate(lift(x_NCXYZ), scale_factor=2) + skip_NCXYZ
            x_NCXYZ = x_NCXYZ + self.activation(up(x_NCXYZ))
        return self.classes(x_NCXYZ).to(at_least_float32(x_NCXYZ.dtype))


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> Conv3d:
    return spectrally_normalised(Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1))
