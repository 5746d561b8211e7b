"""The noise of DPGAN: what is added to the sum of clipped gradients (Abadi 2016, algorithm 1).

It is numpy's (Philox), drawn on the CPU: the same bytes after a resume and on every device. torch's own generator would
keep 32 bits of a secret key.
"""

import numpy as np
import torch
from torch import Tensor

_STREAM = 0xD0


def noise_source(key: int, num_releases: int) -> np.random.Generator:
    """What the noise of the next noisy gradient is drawn from; `num_releases` were published before it."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((key, num_releases, _STREAM))))


def gaussian_noise(source: np.random.Generator, like: Tensor, *, sd: float) -> Tensor:
    """Normal noise of standard deviation `sd`, of the shape and on the device of `like`."""
    return torch.from_numpy(source.standard_normal(like.shape, np.float32)).to(like.device) * sd
