"""The generator of a release, to be run without the package that trained it: torch and safetensors are enough.

A release holds this file as generator/generator.py, beside generator.safetensors and architecture.json. The operations
are those of training's own networks in evaluation, in the same order, so that the same noise gives the same patch.
Shapes: N batch, L noise, C channel (0 image in [-1, 1], 1 vessel label's score), X Y Z voxels, F features.
"""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

LAST = torch.channels_last_3d
BLOCK, NUM_BINS, DATA_SD = 2, 6, 0.5
TIME_FREQUENCIES, POSITION_FREQUENCIES, VOXEL_FREQUENCIES = 8, 3, 5


def load_generator(folder: str | Path) -> Any:
    """The network in `folder`, in float32 on the CPU; call it with noise [N, network.latent_size].

    One that makes images of given labels takes them too, [N, network.num_given, X, Y, Z]: the label, 0 or 1, and, where
    there are two channels, the tissue map: 0 outside, 0.5 head, 1 brain.
    """
    settings = json.loads((Path(folder) / "architecture.json").read_text(encoding="utf-8"))
    network = FlowGenerator(settings) if settings["kind"] == "flow" else GanGenerator(settings)
    network.latent_size, network.label_threshold = settings["latent_size"], settings["label_threshold"]
    network.load_state_dict(load_file(str(Path(folder) / "generator.safetensors")))
    return network.eval()


class GanGenerator(nn.Module):
    """Linear, three times upsampling and convolution, a convolution, tanh; settings: width, norm, patch_shape."""

    latent_size: int
    label_threshold: float

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width, self.has_bias = settings["width"], settings["norm"] == "group"
        self.start_shape = (width, *(side // 8 for side in settings["patch_shape"]))
        channels = [width, width // 2, width // 4, width // 8]
        norm = group_norm if self.has_bias else nn.BatchNorm3d
        self.start = nn.Linear(settings["latent_size"], math.prod(self.start_shape))
        self.start_norm = norm(width)
        self.ups = nn.ModuleList(nn.Conv3d(before, after, 3, padding=1) for before, after in pairwise(channels))
        self.norms = nn.ModuleList(norm(after) for after in channels[1:])
        self.last = nn.Conv3d(channels[-1], 2, 3, padding=1)

    def forward(self, z_NL: Tensor) -> Tensor:
        """[N, L] -> [N, 2, X, Y, Z] in [-1, 1]."""
        x_NCXYZ = self.start(z_NL).view(-1, *self.start_shape).contiguous(memory_format=LAST)
        for norm, up in zip((self.start_norm, *self.norms), self.ups, strict=False):
            x_NCXYZ = upsampled(norm(x_NCXYZ).relu_(), up, has_bias=self.has_bias)
        return in_blocks(self.norms[-1](x_NCXYZ).relu_(), self.last).tanh()


class FlowGenerator(nn.Module):
    """A U-Net that denoises, followed from noise to patch.

    Settings: width, num_levels, has_position, num_given, num_steps, time_power, guidance.
    """

    latent_size: int
    label_threshold: float
    position_counts: Tensor
    patch_extent: Tensor

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.patch_shape, self.has_position = settings["patch_shape"], settings["has_position"]
        self.num_steps, self.time_power = settings["num_steps"], settings["time_power"]
        self.guidance = settings["guidance"]
        self.num_given, self.num_channels = settings["num_given"], 1 if settings["num_given"] else 2
        self.num_voxels = self.num_channels * math.prod(self.patch_shape)
        width = settings["width"]
        channels, features, fine = [width] + [2 * width] * (settings["num_levels"] - 1), 4 * width, width // 4
        inputs = 2 * TIME_FREQUENCIES + 6 * POSITION_FREQUENCIES * self.has_position
        self.embed = nn.Sequential(nn.Linear(inputs, features), nn.SiLU(), nn.Linear(features, features))
        self.fine_first = nn.Conv3d(self.num_channels + self.num_given, fine, 3, padding=1)
        self.first = nn.Conv3d(BLOCK**3 * fine, width, 1)
        widths = zip([width, *channels], channels, strict=False)
        self.downs = nn.ModuleList(ResidualBlock(before, after, features) for before, after in widths)
        ups = list(pairwise(reversed(channels)))
        self.lifts = nn.ModuleList(nn.Conv3d(low, high, 1) for low, high in ups)
        self.ups = nn.ModuleList(ResidualBlock(2 * high, high, features) for _, high in ups)
        self.last_norm, self.last = group_norm(width), nn.Conv3d(width, BLOCK**3 * fine, 1)
        self.fine_norms = nn.ModuleList([group_norm(2 * fine), group_norm(fine)])
        self.fine_middle = nn.Conv3d(2 * fine, fine, 3, padding=1)
        self.fine_scale_shift, self.gate = nn.Linear(features, 2 * fine), nn.Linear(features, self.num_channels)
        self.fine_last = nn.Conv3d(fine, self.num_channels, 3, padding=1)
        if self.has_position:
            self.places = nn.ModuleList(nn.Linear(2 * VOXEL_FREQUENCIES, width) for _ in range(3))
        self.register_buffer("patch_extent", torch.ones(3))
        self.register_buffer("position_counts", torch.ones(NUM_BINS, NUM_BINS, NUM_BINS))

    def forward(self, z_NL: Tensor, given_NGXYZ: Tensor | None = None, position_N3: Tensor | None = None) -> Tensor:
        """[N, L] -> [N, 2, X, Y, Z]: image in [-1, 1], the label's score in [0, 1]; `num_steps` evaluations.

        position_N3: the patches' centres in the head, -1 to 1 along each axis; None: drawn by the noise.
        """
        x_NCXYZ = z_NL[:, : self.num_voxels].reshape(-1, self.num_channels, *self.patch_shape)
        given = [2 * given_NGXYZ - 1] if given_NGXYZ is not None else []
        if sum(channels.shape[1] for channels in given) != self.num_given:
            raise TypeError(f"this network is given {self.num_given} channels beside noise, see load_generator")
        if position_N3 is None and self.has_position:
            position_N3 = self.positions(z_NL[:, self.num_voxels :])
        times = [(1 - k / self.num_steps) ** self.time_power for k in range(self.num_steps + 1)]
        first = previous = None
        for (before, after), ahead in zip(pairwise(times), extrapolations(times), strict=True):
            time_N = x_NCXYZ.new_full((len(x_NCXYZ),), before)
            patch = self.denoised(torch.cat([x_NCXYZ, *given], 1), time_N, position_N3)
            first = patch if first is None else first
            patch = first.lerp(patch, 1 + self.guidance * before)
            middle = patch if previous is None else patch.lerp(previous, -ahead)
            x_NCXYZ, previous = middle.lerp(x_NCXYZ, after / before), patch
        image, label, *_ = torch.cat([x_NCXYZ, *given], 1).unbind(1)
        return torch.stack([image.clamp(-1, 1), ((label + 1) / 2).clamp(0, 1)], 1)

    def positions(self, z_N4: Tensor) -> Tensor:
        """Four normal numbers each -> a place in the head, [N, 3] in [-1, 1]."""
        uniform_N4 = torch.special.ndtr(z_N4)
        ends = self.position_counts.flatten().to(z_N4.dtype).cumsum(0)
        bins_N = torch.searchsorted(ends, uniform_N4[:, 0] * ends[-1], right=True).clamp_max(len(ends) - 1)
        bins_N3 = torch.stack([bins_N // NUM_BINS**2, bins_N // NUM_BINS % NUM_BINS, bins_N % NUM_BINS], 1)
        return 2 * (bins_N3 + uniform_N4[:, 1:]) / NUM_BINS - 1

    def places_of(self, position_N3: Tensor) -> Tensor:
        """A function of each axis' coordinate of every block, added up."""
        octaves = math.pi / 2 * 2.0 ** torch.arange(VOXEL_FREQUENCIES, device=position_N3.device)
        total = position_N3.new_zeros(())
        for axis, place in enumerate(self.places):
            count = self.patch_shape[axis] // BLOCK
            offset_P = (2 * torch.arange(count, device=position_N3.device) + 1) / count - 1
            angles_NPF = (position_N3[:, axis, None] + self.patch_extent[axis] * offset_P)[:, :, None] * octaves
            features_NPF = torch.cat([angles_NPF.sin(), angles_NPF.cos()], 2)
            shape = [len(position_N3), -1, *(count if k == axis else 1 for k in range(3))]
            total = total + place(features_NPF).transpose(1, 2).reshape(shape)
        return total

    def denoised(self, x_NCXYZ: Tensor, time_N: Tensor, position_N3: Tensor | None) -> Tensor:
        """The predicted patches of points between noise (time 1) and patch (time 0)."""
        t = time_N.view(-1, 1, 1, 1, 1)
        variance = t.square() + ((1 - t) * DATA_SD).square()
        fine_NCXYZ = self.fine_first((x_NCXYZ * variance.rsqrt()).contiguous(memory_format=LAST))
        h = self.first(to_blocks(fine_NCXYZ))
        if position_N3 is not None:
            h = h + self.places_of(position_N3)
        features_NF = self.embed(frequencies(time_N, position_N3))
        skips: list[Tensor] = []
        for depth, down in enumerate(self.downs):
            h = down(F.avg_pool3d(h, 2) if depth else h, features_NF)
            skips.append(h)
        for lift, up, skip in zip(self.lifts, self.ups, reversed(skips[:-1]), strict=True):
            h = up(torch.cat([F.interpolate(lift(h), scale_factor=2), skip], 1), features_NF)
        h = torch.cat([from_blocks(self.last(F.silu(self.last_norm(h)))), fine_NCXYZ], 1)
        h = self.fine_middle(F.silu(self.fine_norms[0](h.contiguous(memory_format=LAST))))
        features_NF = F.silu(features_NF)
        h = modulated(self.fine_norms[1](h), self.fine_scale_shift(features_NF))
        kept_NC111 = self.gate(features_NF)[:, :, None, None, None]
        return torch.addcmul(in_blocks(F.silu(h), self.fine_last), kept_NC111, x_NCXYZ[:, : self.num_channels])


class ResidualBlock(nn.Module):
    """Twice group norm, SiLU and convolution, between them scale and shift by the features; plus the input."""

    def __init__(self, before: int, after: int, features: int) -> None:
        super().__init__()
        self.first_norm, self.first = group_norm(before), nn.Conv3d(before, after, 3, padding=1)
        self.scale_shift = nn.Linear(features, 2 * after)
        self.second_norm, self.second = group_norm(after), nn.Conv3d(after, after, 3, padding=1)
        self.shortcut = None if before == after else nn.Conv3d(before, after, 1)

    def forward(self, x_NCXYZ: Tensor, features_NF: Tensor) -> Tensor:
        normal_NCXYZ = self.first_norm(x_NCXYZ)
        h = self.first(F.silu(normal_NCXYZ))
        h = self.second(F.silu(modulated(self.second_norm(h), self.scale_shift(F.silu(features_NF)))))
        return (x_NCXYZ if self.shortcut is None else self.shortcut(normal_NCXYZ)) + h


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 8), channels)


def modulated(x_NCXYZ: Tensor, scale_shift_N2C: Tensor) -> Tensor:
    scale_NC111, shift_NC111 = scale_shift_N2C[:, :, None, None, None].chunk(2, 1)
    return torch.addcmul(shift_NC111, x_NCXYZ, 1 + scale_NC111)


def frequencies(time_N: Tensor, position_N3: Tensor | None) -> Tensor:
    """Sines and cosines of time and position."""
    octaves = 2.0 ** torch.arange(TIME_FREQUENCIES, device=time_N.device)
    angles = [math.pi / 4 * time_N[:, None] * octaves]
    if position_N3 is not None:
        angles.append((math.pi / 2 * position_N3[:, :, None] * octaves[:POSITION_FREQUENCIES]).flatten(1))
    angles_NF = torch.cat(angles, 1)
    return torch.cat([angles_NF.sin(), angles_NF.cos()], 1)


def extrapolations(times: list[float]) -> list[float]:
    """Per step, the weight of extrapolation from the previous prediction (DPM-Solver++ 2M; Lu 2022); 0 at both ends."""
    weights = [0.0] * (len(times) - 1)
    for k in range(2, len(times) - 2):
        before, now, after = (math.log((1 - t) / t) for t in times[k - 1 : k + 2])
        weights[k] = (after - now) / (2 * (now - before))
    return weights


def upsampled(x_NCXYZ: Tensor, convolution: nn.Module, *, has_bias: bool) -> Tensor:
    """Nearest upsampling by two and a 3x3x3 convolution, as one transposed convolution of the summed taps."""
    assert isinstance(convolution, nn.Conv3d)
    weight, bias = convolution.weight, convolution.bias if has_bias else None
    taps: Tensor = weight
    for axis in (2, 3, 4):
        w0, w1, w2 = taps.unbind(axis)
        taps = torch.stack([w2, w1 + w2, w0 + w1, w0], axis)
    return F.conv_transpose3d(x_NCXYZ, taps.transpose(0, 1), bias, stride=2, padding=1)


def in_blocks(x_NCXYZ: Tensor, convolution: nn.Conv3d) -> Tensor:
    """A 3x3x3 convolution with padding 1, computed as blocks of 2x2x2 output voxels."""
    offsets = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    shifted = [F.pad(convolution.weight, (z, 1 - z, y, 1 - y, x, 1 - x)) for x, y, z in offsets]
    taps = torch.stack(shifted, 1).flatten(0, 1)
    assert convolution.bias is not None
    blocks = F.conv3d(x_NCXYZ, taps, convolution.bias.repeat_interleave(8), stride=2, padding=1)
    blocks = blocks.contiguous().unflatten(1, (-1, 2, 2, 2))
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(len(x_NCXYZ), -1, *x_NCXYZ.shape[2:])


def to_blocks(x_NCXYZ: Tensor) -> Tensor:
    """[N, C, X, Y, Z] -> [N, 8 C, X/2, Y/2, Z/2]."""
    n, c, x, y, z = x_NCXYZ.shape
    blocks = x_NCXYZ.reshape(n, c, x // BLOCK, BLOCK, y // BLOCK, BLOCK, z // BLOCK, BLOCK)
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4).contiguous(memory_format=LAST)


def from_blocks(x_NCXYZ: Tensor) -> Tensor:
    """The reverse of `to_blocks`."""
    n, c, x, y, z = x_NCXYZ.shape
    blocks = x_NCXYZ.contiguous().view(n, c // BLOCK**3, BLOCK, BLOCK, BLOCK, x, y, z)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(n, c // BLOCK**3, BLOCK * x, BLOCK * y, BLOCK * z)
