"""What a run's network itself says of real patches: the critic's score, or how well a flow denoises them.

This is what leaks if that network leaves, not what its samples tell. A critic has seen every training patch, and so has
a flow's generator; a GAN's never saw one, where labels are given those alone.
N batch, C channel (0 image, 1 vessel label), X Y Z voxels
"""

import numpy as np
import torch
from torch import Tensor, nn

from vesselgan.core.errors import CheckpointError, DataError, NumericError
from vesselgan.data.patches import ShardDataset
from vesselgan.data.positions import positions_of
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.losses.flow_matching import point_on_path
from vesselgan.losses.voxel_classes import balanced_weights, classification_loss, one_hot_classes
from vesselgan.models.flow import FlowGenerator, with_signed_label
from vesselgan.models.segmentation_critic import SegmentationCritic
from vesselgan.models.variants import build_networks, takes_tissue
from vesselgan.runtime.checkpoint import read_weights
from vesselgan.runtime.generator_weights import read_generator_weights

BATCH_SIZE = 8
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""On a flow's path, from the patch to noise, where its error is measured."""


class AttackedNetwork:
    """The critic of a run, or the generator of a flow, beside the generator's weights that samples are of.

    checkpoint, weights: as in `read_generator_weights`. Raises CheckpointError for weights that are missing or damaged,
    DataError for a run that learned from other shards than `training`.
    """

    def __init__(
        self, run: str, training: ShardSet, device: torch.device, *, checkpoint: str | None, weights: str | None
    ) -> None:
        run_dir = RunDir(run)
        config = run_dir.config("train_gan")
        if run_dir.learned_from() - {content_hash(training.folder)}:
            raise DataError(f"{run}: was trained on other shards than {training.folder}; name their cohort with data=")
        is_flow = config.variant.flow is not None
        self.kind, self.scaling, self.device = "flow" if is_flow else "critic", config.data.scaling, device
        generator = read_generator_weights(run_dir.path, config.variant, weights, checkpoint)
        self.checkpoint, self.weights_sha256 = generator.checkpoint, generator.sha256
        file = "generator" if is_flow else "critic"
        tensors = generator.tensors if is_flow else read_weights(run_dir.path, file, self.checkpoint)[0]
        network = build_networks(config.variant, generator.state["manifest"]["patch_shape"])[file]
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{run}: the {file}'s weights and the run's settings disagree: {reason}") from error
        self.network: nn.Module = network.to(device).eval()

    @torch.inference_mode()
    def scores(self, shards: ShardSet, rows: list[int], *, seed: int) -> np.ndarray:
        """[N] of these patches, higher where the network knows a patch. Raises NumericError if one is not finite."""
        dataset = ShardDataset(shards, scaling=self.scaling, with_tissue=takes_tissue(self.network))
        flow = self.network if isinstance(self.network, FlowGenerator) else None
        positions_N3 = positions_of(shards) if flow is not None and flow.has_position else None
        scores = []
        for start in range(0, len(rows), BATCH_SIZE):
            batch = rows[start : start + BATCH_SIZE]
            patch_NCXYZ = dataset.read(batch).to(self.device)
            position_N3 = None if positions_N3 is None else positions_N3[batch].to(self.device)
            if flow is not None:
                score_N = -self._errors(flow, patch_NCXYZ, position_N3, seed)
            else:
                score_N = self._critic_scores(patch_NCXYZ)
            scores.append(score_N.double().cpu().numpy())
        all_scores = np.concatenate(scores)
        if not np.isfinite(all_scores).all():
            raise NumericError(f"{shards.folder}: the {self.kind}'s scores of some patches are not finite; it diverged")
        return all_scores

    def _critic_scores(self, patch_NCXYZ: Tensor) -> Tensor:
        """[N]: a critic's scores; of one that classifies voxels, its negative loss, patch by patch."""
        found = self.network(patch_NCXYZ)
        if not isinstance(self.network, SegmentationCritic):
            return found
        scores = []
        for logits, one_hot in zip(
            found.split(1), one_hot_classes(patch_NCXYZ[:, 1:], self.network.num_classes).split(1), strict=True
        ):
            scores.append(-classification_loss(logits, one_hot, balanced_weights(one_hot)))
        return torch.stack(scores)

    def _errors(self, flow: FlowGenerator, patch_NCXYZ: Tensor, position_N3: Tensor | None, seed: int) -> Tensor:
        """[N]: a flow's mean squared error of the denoised patches over TIMES; every patch gets the same noise."""
        source = torch.Generator().manual_seed(seed)
        noise_CXYZ = torch.randn((len(TIMES), *patch_NCXYZ.shape[1:]), generator=source).to(self.device)
        patch_NCXYZ = with_signed_label(patch_NCXYZ)
        errors = []
        for time, noise in zip(TIMES, noise_CXYZ, strict=True):
            time_N = torch.full((len(patch_NCXYZ),), time, device=self.device)
            point_NCXYZ = point_on_path(patch_NCXYZ, noise.expand_as(patch_NCXYZ), time_N)
            given_NCXYZ = flow.with_given(point_NCXYZ, patch_NCXYZ)
            denoised_NCXYZ = flow.denoised(given_NCXYZ, time_N, position_N3)
            error_NCXYZ = (denoised_NCXYZ - patch_NCXYZ[:, : flow.num_channels]).square()
            errors.append(error_NCXYZ.mean((1, 2, 3, 4)))
        return torch.stack(errors).mean(0)
