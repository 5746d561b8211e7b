"""MedicalNet's ResNet-10 without its head (Chen 2019, arXiv 1904.00625): 3D patches in, 512 features out.

Its later stages keep their resolution and dilate instead: stage 3 by 2, stage 4 by 4, both at stride 1. Networks of
the same name elsewhere stride there and load the same weights without a complaint, but give other features.

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
    """[N, 1, X, Y, Z] -> [N, 512], the mean of the last stage over all voxels. Names as in MedicalNet's files."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        inputs = 64
        for number, (channels, stride, dilation) in enumerate(STAGES, 1):
            setattr(self, f"layer{number}", nn.Sequential(Block(inputs, channels, stride, dilation)))
            inputs = channels

    def forward(self, patch_NCXYZ: Tensor) -> Tensor:
        hidden = self.maxpool(self.relu(self.bn1(self.conv1(patch_NCXYZ))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = stage(hidden)
        return hidden.mean(dim=(2, 3, 4))


class Block(nn.Module):
    """Two convolutions of 3 x 3 x 3 and the way around them (ResNet's shortcut B where sizes differ)."""

    def __init__(self, inputs: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, channels, stride, dilation)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = _convolution(channels, channels, 1, dilation)
        self.bn2 = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != channels:
            around = nn.Conv3d(inputs, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(around, nn.BatchNorm3d(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        around = hidden if self.downsample is None else self.downsample(hidden)
        inner = self.relu(self.bn1(self.conv1(hidden)))
        return self.relu(self.bn2(self.conv2(inner)) + around)


def _convolution(inputs: int, channels: int, stride: int, dilation: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


@torch.no_grad()
def draw_weights(network: ResNet10, seed: int) -> None:
    """MedicalNet's own start (He normal by fan-out; batch norms that change nothing) from a seed, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(part, nn.BatchNorm3d):
            part.reset_parameters()


def load_weights(network: ResNet10, content: object, source: str) -> None:
    """Put the tensors of a MedicalNet file into `network`; all of them or none.

    `content`: {"state_dict": {...}} or the tensors alone, their names with or without `module.`. DataError, naming the
    keys, unless they are exactly this network's, in name, shape and finite values.
    """
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise DataError(f"{source}: holds no weights; a MedicalNet file is a dictionary of tensors (state_dict)")
    found = {str(name).removeprefix(PREFIX): value for name, value in tensors.items()}
    wanted = network.state_dict()
    problems = _listed("missing", [name for name in wanted if name not in found])
    problems += _listed("foreign", [name for name in found if name not in wanted])
    both = [name for name in wanted if name in found]
    unlike = [name for name in both if found[name].shape != wanted[name].shape]
    problems += _listed("of another shape", [f"{n} {list(found[n].shape)} for {list(wanted[n].shape)}" for n in unlike])
    problems += _listed("not finite", [name for name in both if not found[name].isfinite().all()])
    if problems:
        raise DataError(f"{source}: not the weights of MedicalNet's ResNet-10: {'; '.join(problems)}")
    network.load_state_dict(found)


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return [f"{len(names)} {what} ({', '.join(names[:MAX_NAMED])}{more})"]
