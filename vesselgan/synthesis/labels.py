"""Labels for a network that is given them: cut from vessel trees of nobody, as training patches are from patients'.

The trees are those of whole heads (vesselgan.anatomy). Every second patch is centred on a vessel, the others lie on the
grid that covers the head.
N batch, X Y Z voxels.
"""

from collections.abc import Sequence
from functools import lru_cache
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from data_prep import patches
from vesselgan.anatomy.head import check_training_volumes, synthetic_head
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.generator import sample_seed

PATCHES_PER_HEAD = 24
"""Few, so that a set of patches holds many trees."""
Corner = tuple[int, int, int]


class LabelPatches:
    """The label and the place of every patch of a seed; its heads are as large as the training volumes."""

    def __init__(self, network: FlowGenerator, spacing_mm: Sequence[float], seed: int) -> None:
        """UsageError where the training volumes are too small for a head."""
        self.shape, self.patch_shape = network.volume_shape, network.patch_shape
        self.has_position, self.num_given = network.has_position, network.num_given
        self.spacing_mm, self.seed = [float(mm) for mm in spacing_mm], seed
        check_training_volumes(self.shape, self.spacing_mm, can_make_heads=self.has_position)
        self._lock, self._head = Lock(), lru_cache(maxsize=4)(self._grow)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """float32 [N, G, X, Y, Z] (see `Head.channels`), and the patches' centres [N, 3] if they are a condition.

        A patch is a function of the seed and its number.
        """
        given, centres = [], []
        for index in indices:
            with self._lock:  # threads share a head
                channels_GXYZ, corners = self._head(index // PATCHES_PER_HEAD)
            corner = corners[index % PATCHES_PER_HEAD]
            given.append(np.stack([patches.cut(channel, corner, self.patch_shape) for channel in channels_GXYZ]))
            centres.append(2 * (np.array(corner) + np.array(self.patch_shape) / 2) / np.array(self.shape) - 1)
        positions_N3 = torch.from_numpy(np.array(centres, np.float32)) if self.has_position else None
        return torch.from_numpy(np.stack(given)), positions_N3

    def _grow(self, number: int) -> tuple[np.ndarray, list[Corner]]:
        """What is given of a head, and the first voxels of its patches."""
        seed = sample_seed(self.seed, number)
        head = synthetic_head(seed, self.shape, self.spacing_mm)
        rng, half = np.random.default_rng(np.random.SeedSequence((seed, number))), PATCHES_PER_HEAD // 2
        grid_G3 = patches.grid_corners(self.shape, self.patch_shape)
        on_grid = grid_G3[rng.choice(len(grid_G3), half, replace=len(grid_G3) < half)]
        on_vessels = patches.vessel_corners(
            head.label_XYZ, self.patch_shape, half, seed=seed, subject=str(number), purpose="synthetic"
        )
        pairs = zip(on_vessels.tolist(), on_grid.tolist(), strict=True)
        return head.channels(self.num_given), [(x, y, z) for pair in pairs for x, y, z in pair]
