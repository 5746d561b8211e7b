"""MedicalNet's ResNet-10 without its head (Chen 2019, arXiv 1904.00625): 3D patches -> 512 features.

Stages 3 and 4 have stride 1 and dilations 2 and 4. Other networks of this name use strides there: they load the same
weights without an error but give other features.

N batch, C channel, X Y Z voxels, F features
"""

import torch
from torch import Tensor, nn

from vesselgan.core.errors import DataError

NUM_FEATURES = 512
# Channels, stride and dilation of the four stages, one block each.
STAGES = ((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4))
PREFIX = "module."
MAX_NAMED = 6


class ResNet10(nn.Module):
    """[N, 1, X, Y, Z] -> [N, 512], the mean of the last stage over all voxels; named as in MedicalNet's files."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        in_channels = 64
        for number, (channels, stride, dilation) in enumerate(STAGES, 1):
            setattr(self, f"layer{number}", nn.Sequential(Block(in_channels, channels, stride, dilation)))
            in_channels = channels

    def forward(self, patch_NCXYZ: Tensor) -> Tensor:
        x_NCXYZ = self.maxpool(self.relu(self.bn1(self.conv1(patch_NCXYZ))))
        for number in range(1, len(STAGES) + 1):
            x_NCXYZ = getattr(self, f"layer{number}")(x_NCXYZ)
        return x_NCXYZ.mean(dim=(2, 3, 4))


class Block(nn.Module):
    """Two 3x3x3 convolutions and a shortcut (ResNet's option B where sizes differ)."""

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, channels, stride, dilation)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = _convolution(channels, channels, 1, dilation)
        self.bn2 = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            projection = nn.Conv3d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm3d(channels))

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        shortcut = x_NCXYZ if self.downsample is None else self.downsample(x_NCXYZ)
        y_NCXYZ = self.relu(self.bn1(self.conv1(x_NCXYZ)))
        return self.relu(self.bn2(self.conv2(y_NCXYZ)) + shortcut)


def _convolution(in_channels: int, channels: int, stride: int, dilation: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


@torch.no_grad()
def init_weights_randomly(network: ResNet10, seed: int) -> None:
    """MedicalNet's initialisation (He normal by fan-out, identity batch norms) from a seed, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.BatchNorm3d):
            layer.reset_parameters()


def load_weights(network: ResNet10, content: object, source: str) -> None:
    """Load the tensors of a MedicalNet file into `network`, all of them or none.

    `content`: {"state_dict": {...}} or the tensors alone, their names with or without `module.`. DataError, naming the
    keys, unless names and shapes are exactly this network's and all values are finite.
    """
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise DataError(f"{source}: holds no weights; a MedicalNet file is a dictionary of tensors (state_dict)")
    given = {str(name).removeprefix(PREFIX): value for name, value in tensors.items()}
    expected = network.state_dict()
    problems = _listed("missing", [name for name in expected if name not in given])
    problems += _listed("foreign", [name for name in given if name not in expected])
    common = [name for name in expected if name in given]
    unlike = [name for name in common if given[name].shape != expected[name].shape]
    shapes = [f"{name} {list(given[name].shape)} for {list(expected[name].shape)}" for name in unlike]
    problems += _listed("of another shape", shapes)
    problems += _listed("not finite", [name for name in common if not given[name].isfinite().all()])
    if problems:
        raise DataError(f"{source}: not the weights of MedicalNet's ResNet-10: {'; '.join(problems)}")
    network.load_state_dict(given)


def _listed(problem: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return [f"{len(names)} {problem} ({', '.join(names[:MAX_NAMED])}{more})"]
