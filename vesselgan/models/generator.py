"""The generator: latent vector -> image and vessel label.

Shapes: N batch, L latent, C channel (0 image, 1 vessel label), X Y Z voxels.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from vesselgan.core.errors import UsageError
from vesselgan.models.blocks import BatchNorm3d, Linear, NarrowConv3d, check_patch_shape, freeze_bias
from vesselgan.models.norm_relu import norm_relu_convolution
from vesselgan.models.normalisation import GroupNorm3d
from vesselgan.models.upsampling import UpsampleConv3d

SEEDS = 2**32
NORMS = {"batch": BatchNorm3d, "group": GroupNorm3d}


class Generator(nn.Module):
    """Linear to an eighth of the patch on every axis, three upsamplings with convolutions, a convolution, tanh.

    The layers are those of the authors' released code, which give the paper's parameter counts (Table 2); the paper's
    text describes one more. `width` is the number of channels after the linear layer (paper 512; complex 1024); every
    upsampling halves it. `norm="group"` (DPGAN) has the same parameters. Initialise with `blocks.init_weights`.

    torch.compile cannot trace `norm_relu`'s recomputation, and gains 9 % in training and loses 25 % in sampling without
    it (torch 2.13, CPU, 64x64x32, width 64).
    """

    def __init__(self, patch_shape: tuple[int, int, int], width: int, latent_size: int, norm: str = "batch") -> None:
        super().__init__()
        check_patch_shape(patch_shape)
        check_width(width)
        self.latent_size = latent_size
        self.patch_shape = patch_shape
        self.start_shape = (width, *(int(side) // 8 for side in patch_shape))
        # This bias differs from voxel to voxel, so the normalisation after it does not undo it: it is trained.
        self.start = Linear(latent_size, math.prod(self.start_shape))
        self.start_norm = NORMS[norm](width)
        channels = [width, width // 2, width // 4, width // 8]
        ups = [UpsampleConv3d(before, after) for before, after in pairwise(channels)]
        # A group norm normalises several channels as one, so these biases have an effect there.
        self.ups = nn.ModuleList(map(freeze_bias, ups) if norm == "batch" else ups)
        self.norms = nn.ModuleList(NORMS[norm](after) for after in channels[1:])
        self.last = NarrowConv3d(channels[-1], 2)

    def forward(self, z_NL: Tensor) -> Tensor:
        """[N, latent] of any floating type -> [N, 2, X, Y, Z] in [-1, 1], in the type of the weights."""
        x_NCXYZ = self.start(z_NL.to(self.start.weight.dtype)).view(-1, *self.start_shape)
        # Channels last: 1.1 times faster on a CPU. The result is contiguous.
        x_NCXYZ = x_NCXYZ.contiguous(memory_format=torch.channels_last_3d)
        norms, convolutions = (self.start_norm, *self.norms), (*self.ups, self.last)
        for norm, convolution in zip(norms, convolutions, strict=True):
            x_NCXYZ = norm_relu_convolution(norm, x_NCXYZ, convolution)
        return x_NCXYZ.tanh()


def check_width(width: int) -> None:
    """Raise UsageError unless the width can be halved three times."""
    if width < 8 or width % 8:
        raise UsageError(f"variant.width={width}: must be a positive multiple of 8; the paper uses 512 and 1024")


def sample_seed(seed: int, index: int) -> int:
    """The seed of sample `index` of a run with `seed`: below 2^32, unique within a run.

    A run counts up from a hash of its seed, so runs with consecutive seeds do not share samples. (torch's CPU generator
    uses the low 32 bits of a seed only.)
    """
    if seed < 0 or index < 0:
        raise UsageError(f"seed={seed}, index={index}: both must be zero or more")
    first = int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0])
    return (first + index) % SEEDS


def latents(seed: int, indices: Sequence[int], latent_size: int) -> Tensor:
    """Standard normal latents float32 [len(indices), latent] on the CPU; row i depends on seed and indices[i] alone."""
    rows = []
    for index in indices:
        generator = torch.Generator().manual_seed(sample_seed(seed, index))
        rows.append(torch.randn(latent_size, generator=generator))
    return torch.stack(rows) if rows else torch.empty(0, latent_size)
