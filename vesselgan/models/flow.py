"""Flow matching: a network that denoises, and the sampler that follows it from noise to image and vessel label.

On the straight path from a patch x to noise e, x_t = (1 - t) x + t e, time 0 is the patch and 1 noise (Lipman 2023, Liu
2023). The velocity e - x is (x_t - x) / t, so the network predicts x (Li and He 2025): a small one that predicts the
velocity lets noise through, and its samples are grainy. Not the paper's: what one would take today.
Shapes: N batch, L latent, C channel (0 image, 1 vessel label), X Y Z voxels, F features.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vesselgan.core.errors import UsageError
from vesselgan.models.blocks import Conv3d, Linear, NarrowConv3d
from vesselgan.models.generator import check_width
from vesselgan.models.normalisation import Float32Buffers, GroupNorm3d, at_least_float32

BLOCK = 2
"""Voxels per axis that become channels of one, so that most convolutions run on an eighth of the voxels."""
SMALLEST_SIDE = 2
"""Voxels of an axis at the lowest level."""
MAX_LEVELS = 5
NUM_BINS = 6
"""Per axis, of the histogram of positions that samples are drawn from."""
TIME_FREQUENCIES, POSITION_FREQUENCIES, VOXEL_FREQUENCIES = 8, 3, 5
LAST = torch.channels_last_3d
"""1.5 times faster on a CPU, too."""
DATA_SD = 0.5
"""Of patches, roughly: scales the network's input to unit variance (Karras 2022)."""


class FlowGenerator(Float32Buffers):
    """A 3D U-Net of residual blocks that knows the time and, with `has_position`, the patch's place in the head.

    Its first and last convolutions see every voxel, with width / 4 channels; between them the levels work on blocks of
    2x2x2, have width, then twice as many channels, and halve every axis down to SMALLEST_SIDE. A latent is the noise of
    every voxel of both channels and, with `has_position`, four numbers that choose a place. Where the label, or label
    and tissue map, are given, the image alone is made. In one step it is the generator of a GAN that is given them.
    Initialise with `init_flow_weights`.
    """

    position_counts: Tensor
    patch_extent: Tensor

    def __init__(
        self,
        patch_shape: tuple[int, int, int],
        width: int,
        *,
        has_position: bool,
        time_shift: float,
        num_steps: int,
        guidance: float,
        time_power: float = 1.0,
        num_given: int = 0,
    ) -> None:
        """time_shift: see `shifted_times`. num_steps, time_power, guidance: see `follow`. UsageError for an odd shape.

        num_given: channels that are given, 1: the label, 2: label and tissue map; 0: the network makes its labels.
        """
        super().__init__()
        check_width(width)
        self.patch_shape, self.has_position, self.num_given = patch_shape, has_position, num_given
        self.num_channels = 1 if num_given else 2
        self.time_shift, self.sampling = time_shift, Sampling(num_steps, time_power, guidance)
        self.num_voxels = self.num_channels * math.prod(patch_shape)
        self.latent_size = self.num_voxels + 4 * has_position
        channels = [width] + [2 * width] * (_num_levels(patch_shape) - 1)
        num_features = 4 * width
        num_inputs = 2 * TIME_FREQUENCIES + 6 * POSITION_FREQUENCIES * has_position
        self.embed = nn.Sequential(Linear(num_inputs, num_features), nn.SiLU(), Linear(num_features, num_features))
        fine = width // 4
        self.fine_first = Conv3d(self.num_channels + num_given, fine, kernel_size=3, padding=1)
        self.first = Conv3d(BLOCK**3 * fine, width, kernel_size=1)
        widths = zip([width, *channels], channels, strict=False)
        self.downs = nn.ModuleList(ResidualBlock(i, o, num_features) for i, o in widths)
        ups = list(pairwise(reversed(channels)))
        self.lifts = nn.ModuleList(Conv3d(low, high, kernel_size=1) for low, high in ups)
        self.ups = nn.ModuleList(ResidualBlock(2 * high, high, num_features) for _, high in ups)
        self.last_norm = GroupNorm3d(width)
        self.last = Conv3d(width, BLOCK**3 * fine, kernel_size=1)
        self.fine_norms = nn.ModuleList([GroupNorm3d(2 * fine), GroupNorm3d(fine)])
        self.fine_middle = Conv3d(2 * fine, fine, kernel_size=3, padding=1)
        self.fine_scale_shift = Linear(num_features, 2 * fine)
        self.fine_last = NarrowConv3d(fine, self.num_channels)
        self.gate = Linear(num_features, self.num_channels)
        # With its centre alone, a patch knows roughly where skull and skin run, not where within it.
        if has_position:
            self.places = nn.ModuleList(Linear(2 * VOXEL_FREQUENCIES, width) for _ in range(3))
        self.register_buffer("patch_extent", torch.ones(3))
        self.register_buffer("position_counts", torch.ones(NUM_BINS, NUM_BINS, NUM_BINS))

    def denoised(
        self, x_NCXYZ: Tensor, time_N: Tensor, position_N3: Tensor | None, extent_3: Tensor | None = None
    ) -> Tensor:
        """The predicted patches, at least float32, of points x_t on the path; of the image alone if the label is given.

        position_N3: the patches' centres, -1 to 1 along each axis of the head. extent_3: share of each axis that a
        patch takes; None: as in training.
        """
        dtype = self.fine_last.weight.dtype
        x_NCXYZ = x_NCXYZ.to(at_least_float32(dtype))
        t = time_N.to(x_NCXYZ.dtype).view(-1, 1, 1, 1, 1)
        variance = t.square() + ((1 - t) * DATA_SD).square()
        fine_NCXYZ = self.fine_first((x_NCXYZ * variance.rsqrt()).to(dtype).contiguous(memory_format=LAST))
        h = self.first(_to_blocks(fine_NCXYZ))
        if self.has_position:
            assert position_N3 is not None
            h = h + self._places(position_N3, self.patch_extent if extent_3 is None else extent_3).to(dtype)
        features_NF = self.embed(self._inputs(time_N, position_N3).to(dtype))
        skips: list[Tensor] = []
        for depth, down in enumerate(self.downs):
            h = down(_pooled(h) if depth else h, features_NF)
            skips.append(h)
        for lift, up, skip in zip(self.lifts, self.ups, reversed(skips[:-1]), strict=True):
            h = up(torch.cat([F.interpolate(lift(h), scale_factor=2), skip], 1), features_NF)
        h = torch.cat([_from_blocks(self.last(F.silu(self.last_norm(h)))), fine_NCXYZ], 1)
        h = self.fine_middle(F.silu(self.fine_norms[0](h.contiguous(memory_format=LAST))))
        features_NF = F.silu(features_NF)
        h = _modulated(self.fine_norms[1](h), self.fine_scale_shift(features_NF))
        # Near the patch nothing is left to denoise: without a gate for it, what is fine gets lost on the way.
        kept_NC111 = self.gate(features_NF)[:, :, None, None, None].to(x_NCXYZ.dtype)
        return torch.addcmul(self.fine_last(F.silu(h)).to(x_NCXYZ.dtype), kept_NC111, x_NCXYZ[:, : self.num_channels])

    def with_given(self, point_NCXYZ: Tensor, patch_NCXYZ: Tensor) -> Tensor:
        """Points on the path of patches, with the patch's own channels for those that are given."""
        return torch.cat([point_NCXYZ[:, :1], patch_NCXYZ[:, 1:]], 1) if self.num_given else point_NCXYZ

    def _places(self, position_N3: Tensor, extent_3: Tensor) -> Tensor:
        """[N, width, X/2, Y/2, Z/2]: a function of each axis' coordinate, added up; blocks combine them."""
        octaves = math.pi / 2 * 2.0 ** torch.arange(VOXEL_FREQUENCIES, device=position_N3.device)
        total: Tensor | int = 0
        for axis, place in enumerate(self.places):
            count = self.patch_shape[axis] // BLOCK
            offset_P = (2 * torch.arange(count, device=position_N3.device) + 1) / count - 1
            angles_NPF = (position_N3[:, axis, None] + extent_3[axis] * offset_P)[:, :, None] * octaves
            features_NPF = torch.cat([angles_NPF.sin(), angles_NPF.cos()], 2).to(self.fine_last.weight.dtype)
            shape = [len(position_N3), -1, *(count if k == axis else 1 for k in range(3))]
            total = total + place(features_NPF).transpose(1, 2).reshape(shape)
        assert isinstance(total, Tensor)
        return total

    def _inputs(self, time_N: Tensor, position_N3: Tensor | None) -> Tensor:
        """Sines and cosines of time and position, at several frequencies."""
        octaves = 2.0 ** torch.arange(TIME_FREQUENCIES, device=time_N.device)
        angles = [math.pi / 4 * time_N[:, None] * octaves]
        if self.has_position:
            assert position_N3 is not None
            angles.append((math.pi / 2 * position_N3[:, :, None] * octaves[:POSITION_FREQUENCIES]).flatten(1))
        angles_NF = torch.cat(angles, 1)
        return torch.cat([angles_NF.sin(), angles_NF.cos()], 1)

    def forward(self, z_NL: Tensor, given_NGXYZ: Tensor | None = None, position_N3: Tensor | None = None) -> Tensor:
        """[N, latent] -> [N, 2, X, Y, Z], in the type of the weights: image in [-1, 1], the label's score in [0, 1].

        given_NGXYZ: what is given, from 0 to 1; its label is that of the samples. position_N3: the patches' centres, as
        in `denoised`; None: drawn by the latents.
        """
        return with_unit_label(self.followed(z_NL, given_NGXYZ, position_N3)).to(self.fine_last.weight.dtype)

    def followed(self, z_NL: Tensor, given_NGXYZ: Tensor | None = None, position_N3: Tensor | None = None) -> Tensor:
        """The same before it is cut to its range, [N, C, X, Y, Z] with all that is given, label from -1 to 1."""
        z_NL = z_NL.to(at_least_float32(z_NL.dtype))
        noise_NCXYZ = z_NL[:, : self.num_voxels].reshape(-1, self.num_channels, *self.patch_shape)
        if position_N3 is None and self.has_position:
            position_N3 = self.positions(z_NL[:, self.num_voxels :])
        given = [] if given_NGXYZ is None else [2 * given_NGXYZ.to(z_NL.dtype) - 1]
        assert sum(channels.shape[1] for channels in given) == self.num_given

        def denoise(x_NCXYZ: Tensor, time: float) -> Tensor:
            return self.denoised(torch.cat([x_NCXYZ, *given], 1), x_NCXYZ.new_full((len(x_NCXYZ),), time), position_N3)

        return torch.cat([follow(noise_NCXYZ, denoise, self.sampling), *given], 1)

    def matrices(self) -> list[nn.Parameter]:
        """Weight matrices between the first layers and the last, for Muon."""
        ends = [self.fine_first, self.fine_last, self.gate]
        is_end = {id(parameter) for layer in ends for parameter in layer.parameters()}
        return [p for p in self.parameters() if p.ndim > 1 and id(p) not in is_end]

    def positions(self, z_N4: Tensor) -> Tensor:
        """Four normal numbers each -> a bin of the histogram, uniform within it: [N, 3] in [-1, 1]."""
        uniform_N4 = torch.special.ndtr(z_N4)
        ends = self.position_counts.flatten().to(z_N4.dtype).cumsum(0)
        bins_N = torch.searchsorted(ends, uniform_N4[:, 0] * ends[-1], right=True).clamp_max(len(ends) - 1)
        bins_N3 = torch.stack([bins_N // NUM_BINS**2, bins_N // NUM_BINS % NUM_BINS, bins_N % NUM_BINS], 1)
        return 2 * (bins_N3 + uniform_N4[:, 1:]) / NUM_BINS - 1

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """Of the volumes that its training patches were cut from, on average."""
        extent_3 = self.patch_extent.tolist()
        x, y, z = (max(size, round(size / share)) for size, share in zip(self.patch_shape, extent_3, strict=True))
        return x, y, z

    @torch.no_grad()
    def keep_extent(self, extent_3: Tensor) -> None:
        """Takes the share of each axis of a head that a patch takes: of patches without one of their own."""
        self.patch_extent.copy_(extent_3)

    @torch.no_grad()
    def count_positions(self, position_N3: Tensor) -> None:
        """Takes the histogram of the training patches' positions, [-1, 1], for samples to be drawn from."""
        bins_N3 = ((position_N3 + 1) / 2 * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        counts = torch.zeros(NUM_BINS, NUM_BINS, NUM_BINS)
        counts.index_put_(tuple(bins_N3.unbind(1)), torch.ones(len(bins_N3)), accumulate=True)
        self.position_counts.copy_(counts)


class ResidualBlock(nn.Module):
    """Twice group norm, SiLU and convolution, between them scale and shift by the features; plus the input.

    Where the number of channels changes the input is normalised on that way too: unnormalised, it grows from block to
    block, and overflowed half after 300 steps.
    """

    def __init__(self, in_channels: int, out_channels: int, num_features: int) -> None:
        super().__init__()
        self.first_norm = GroupNorm3d(in_channels)
        self.first = Conv3d(in_channels, out_channels, kernel_size=3, padding=1)
        self.scale_shift = Linear(num_features, 2 * out_channels)
        self.second_norm = GroupNorm3d(out_channels)
        self.second = Conv3d(out_channels, out_channels, kernel_size=3, padding=1)
        is_same = in_channels == out_channels
        self.shortcut = None if is_same else Conv3d(in_channels, out_channels, kernel_size=1)

    def forward(self, x_NCXYZ: Tensor, features_NF: Tensor) -> Tensor:
        normal_NCXYZ = self.first_norm(x_NCXYZ)
        h = self.first(F.silu(normal_NCXYZ))
        h = self.second(F.silu(_modulated(self.second_norm(h), self.scale_shift(F.silu(features_NF)))))
        return (x_NCXYZ if self.shortcut is None else self.shortcut(normal_NCXYZ)) + h


@dataclass(frozen=True)
class Sampling:
    """How a path is followed: in how many steps, at which powers of equal times, with how much guidance."""

    num_steps: int
    time_power: float
    guidance: float

    @property
    def times(self) -> list[float]:
        """Of all steps, from 1 to 0."""
        return [(1 - k / self.num_steps) ** self.time_power for k in range(self.num_steps + 1)]


def follow(noise_NCXYZ: Tensor, denoise: Callable[[Tensor, float], Tensor], sampling: Sampling) -> Tensor:
    """From noise to what it becomes. denoise: of (x_t, t) -> predicted patches.

    With guidance g every prediction is drawn g t further away from the one that noise alone gives, the mean at this
    place: a small network underrates how much patches differ.
    """
    x_NCXYZ = noise_NCXYZ
    times = sampling.times
    first_NCXYZ = previous_NCXYZ = None
    for (before, after), ahead in zip(pairwise(times), extrapolations(times), strict=True):
        patch_NCXYZ = denoise(x_NCXYZ, before)
        first_NCXYZ = patch_NCXYZ if first_NCXYZ is None else first_NCXYZ
        patch_NCXYZ = first_NCXYZ.lerp(patch_NCXYZ, 1 + sampling.guidance * before)
        middle_NCXYZ = patch_NCXYZ if previous_NCXYZ is None else patch_NCXYZ.lerp(previous_NCXYZ, -ahead)
        x_NCXYZ, previous_NCXYZ = middle_NCXYZ.lerp(x_NCXYZ, after / before), patch_NCXYZ
    return x_NCXYZ


def _modulated(x_NCXYZ: Tensor, scale_shift_N2C: Tensor) -> Tensor:
    scale_NC111, shift_NC111 = scale_shift_N2C[:, :, None, None, None].chunk(2, 1)
    return torch.addcmul(shift_NC111, x_NCXYZ, 1 + scale_NC111)


def with_signed_label(patch_NCXYZ: Tensor) -> Tensor:
    """Patches as a flow sees them: label, and tissue map, from 0 to 1 become -1 to 1."""
    return torch.cat([patch_NCXYZ[:, :1], 2 * patch_NCXYZ[:, 1:] - 1], 1)


def with_unit_label(x_NCXYZ: Tensor) -> Tensor:
    """The reverse, of image and label alone: image cut to [-1, 1], label to [0, 1]."""
    image, label = x_NCXYZ[:, 0], x_NCXYZ[:, 1]
    return torch.stack([image.clamp(-1, 1), ((label + 1) / 2).clamp(0, 1)], 1)


def shifted_times(u: Tensor, shift: float) -> Tensor:
    """t = s u / (1 + (s - 1) u) of u in [0, 1]; a shift s above 1 draws times towards noise."""
    return shift * u / (1 + (shift - 1) * u)


def extrapolations(times: Sequence[float]) -> list[float]:
    """Per step, the weight of linear extrapolation from the previous prediction to the middle of the step.

    DPM-Solver++ (2M; Lu 2022) in the log signal-to-noise ratio log((1 - t) / t). 0 at both ends of the path, where the
    ratio is infinite: those steps are Euler's.
    """
    weights = [0.0] * (len(times) - 1)
    for k in range(2, len(times) - 2):
        before, now, after = (math.log((1 - t) / t) for t in times[k - 1 : k + 2])
        weights[k] = (after - now) / (2 * (now - before))
    return weights


@torch.no_grad()
def init_flow_weights(network: nn.Module, seed: int) -> None:
    """He-normal weights from `seed`; zero where a block or the network ends."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv3d | nn.Linear) and not layer.weight.is_meta:
            sd = (
                0.0
                if name.endswith(("second", "scale_shift", "fine_last", "gate"))
                else math.sqrt(2 / layer.weight[0].numel())
            )
            layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0.0, 1.0, generator=generator) * sd)
            assert layer.bias is not None
            layer.bias.zero_()


def _num_levels(patch_shape: Sequence[int]) -> int:
    if any(side % BLOCK for side in patch_shape):
        raise UsageError(f"patch_shape={list(patch_shape)}: a flow needs even sizes, for example [128, 128, 64]")
    sides, levels = [side // BLOCK for side in patch_shape], 1
    while levels < MAX_LEVELS and all(side % 2 == 0 and side // 2 >= SMALLEST_SIDE for side in sides):
        sides, levels = [side // 2 for side in sides], levels + 1
    return levels


def _pooled(x_NCXYZ: Tensor) -> Tensor:
    """Means of 2x2x2 voxels; torch has no half kernel for it on a CPU."""
    return F.avg_pool3d(x_NCXYZ.to(at_least_float32(x_NCXYZ.dtype)), 2).to(x_NCXYZ.dtype)


def _to_blocks(x_NCXYZ: Tensor) -> Tensor:
    """[N, C, X, Y, Z] -> [N, 8 C, X/2, Y/2, Z/2]."""
    n, c, x, y, z = x_NCXYZ.shape
    blocks = x_NCXYZ.reshape(n, c, x // BLOCK, BLOCK, y // BLOCK, BLOCK, z // BLOCK, BLOCK)
    blocks = blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
    return blocks.contiguous(memory_format=LAST)


def _from_blocks(x_NCXYZ: Tensor) -> Tensor:
    """The reverse of `_to_blocks`."""
    n, c, x, y, z = x_NCXYZ.shape
    blocks = x_NCXYZ.contiguous().view(n, c // BLOCK**3, BLOCK, BLOCK, BLOCK, x, y, z)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(n, c // BLOCK**3, BLOCK * x, BLOCK * y, BLOCK * z)
