"""One volume from overlapping windows: at every step of the sampler their predictions are averaged, smoothly weighted.

So neighbours agree step by step and no seam is left (MultiDiffusion, Bar-Tal 2023). A window has the training patch's
size: group normalisation and the place, one for a window, know no other.
N batch, C channel, X Y Z voxels of the volume, W of a window.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vesselgan.models.flow import FlowGenerator, follow
from vesselgan.synthesis.sampler import in_order, num_workers

OVERLAP = 0.5
"""Share of a window that its neighbour covers too, at least. A quarter takes 0.4 of the time and has no more seams, but
windows of other brightness show as blocks once the network draws tissue well."""
Corner = tuple[int, int, int]


@dataclass(frozen=True)
class Windows:
    """Where the windows of a volume lie."""

    shape: tuple[int, int, int]
    patch_shape: tuple[int, int, int]

    @property
    def starts(self) -> list[list[int]]:
        """Of each axis, evenly over it."""
        return [_starts(side, patch) for side, patch in zip(self.shape, self.patch_shape, strict=True)]

    @property
    def corners(self) -> list[Corner]:
        return [(x, y, z) for x, y, z in itertools.product(*self.starts)]

    @property
    def borders(self) -> list[list[int]]:
        """Of each axis, the voxels inside the volume that a window begins with or ends before."""
        ends = zip(self.starts, self.patch_shape, self.shape, strict=True)
        return [
            sorted({i for start in starts for i in (start, start + patch) if 0 < i < side})
            for starts, patch, side in ends
        ]

    def positions(self, corners: Sequence[Corner]) -> Tensor:
        """[N, 3]: the windows' centres, -1 to 1 along each axis, as of the training patches."""
        centres_N3 = np.array(corners) + np.array(self.patch_shape) / 2
        return torch.from_numpy((2 * centres_N3 / np.array(self.shape) - 1).astype(np.float32))

    @property
    def extent(self) -> Tensor:
        """[3]: share of each axis that a window takes."""
        return torch.tensor(self.patch_shape) / torch.tensor(self.shape)

    def weight(self) -> Tensor:
        """Of a window's voxels, float32 [W, W, W]: squared sines, which fall to almost nothing at its border."""
        x, y, z = (_axis_weight(patch) for patch in self.patch_shape)
        return x[:, None, None] * y[:, None] * z

    def total_weights(self) -> list[Tensor]:
        """The windows' weights added up, as a factor for each axis."""
        totals = []
        for side, patch, starts in zip(self.shape, self.patch_shape, self.starts, strict=True):
            total = torch.zeros(side)
            for start in starts:
                total[start : start + patch] += _axis_weight(patch)
            totals.append(total)
        return totals


def make_image(
    network: FlowGenerator,
    given_GXYZ: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    advance: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """float32 [X, Y, Z] in [-1, 1], the image of a head's `channels` by a flow that is given them, in evaluation mode.

    Holds about ten float32 volumes, however many windows there are. advance: called with the number of windows done.
    """
    assert len(given_GXYZ) == network.num_given and network.has_position and not network.training
    _, x, y, z = given_GXYZ.shape
    windows = Windows((x, y, z), network.patch_shape)
    device = next(network.parameters()).device
    signed_GXYZ = torch.from_numpy(given_GXYZ).half().mul_(2).sub_(1).to(device)
    noise_XYZ = torch.randn((x, y, z), generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.inference_mode():
        image_XYZ = follow(
            noise_XYZ,
            lambda x_XYZ, time: _denoised(network, x_XYZ, signed_GXYZ, time, windows, batch_size, advance),
            network.sampling,
        )
        return image_XYZ.clamp_(-1, 1).cpu().numpy()


def _denoised(
    network: FlowGenerator,
    x_XYZ: Tensor,
    signed_GXYZ: Tensor,
    time: float,
    windows: Windows,
    batch_size: int,
    advance: Callable[[int], object],
) -> Tensor:
    """The weighted mean of the windows' predictions, float32 [X, Y, Z]."""
    weight_WWW, corners = windows.weight().to(x_XYZ.device), windows.corners
    batches = [corners[first : first + batch_size] for first in range(0, len(corners), batch_size)]

    def predict(batch: list[Corner]) -> Tensor:
        with torch.inference_mode():
            parts = [(x_XYZ[None, *_part(c, windows)], signed_GXYZ[:, *_part(c, windows)].float()) for c in batch]
            point_NCWWW = torch.stack([torch.cat(part) for part in parts])
            time_N = x_XYZ.new_full((len(batch),), time)
            positions_N3 = windows.positions(batch).to(x_XYZ.device)
            denoised = network.denoised(point_NCWWW, time_N, positions_N3, windows.extent.to(x_XYZ.device))
            return denoised[:, 0].float() * weight_WWW

    sum_XYZ = torch.zeros_like(x_XYZ)
    workers = num_workers(batch_size * math.prod(windows.patch_shape), x_XYZ.device)
    for batch, predicted_NWWW in zip(batches, in_order(predict, batches, workers), strict=True):
        for corner, predicted_WWW in zip(batch, predicted_NWWW, strict=True):
            sum_XYZ[_part(corner, windows)] += predicted_WWW
        advance(len(batch))
    for axis, total in enumerate(windows.total_weights()):
        sum_XYZ /= total.to(x_XYZ.device).reshape([-1 if k == axis else 1 for k in range(3)])
    return sum_XYZ


def _part(corner: Corner, windows: Windows) -> tuple[slice, slice, slice]:
    x, y, z = (slice(start, start + patch) for start, patch in zip(corner, windows.patch_shape, strict=True))
    return x, y, z


def _starts(side: int, patch: int) -> list[int]:
    count = 1 + math.ceil((side - patch) / (patch * (1 - OVERLAP)))
    return [int(start) for start in np.linspace(0, side - patch, count).round()]


def _axis_weight(patch: int) -> Tensor:
    return torch.sin(math.pi * (torch.arange(patch) + 0.5) / patch).square()
