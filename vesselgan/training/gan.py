"""The GAN's training: n_critic critic steps, then one generator step (Subramaniam 2022, eq. 1 and 2).

Everything random is a function of (seed, position), so a resumed run continues exactly and a result does not depend on
the number of ranks. Where we differ from the authors' code: the fake patches of the critic step carry no graph, the
critic is frozen in the generator step, and each of the n_critic steps is a real step on a fresh batch.
Real and fake take a forward each: one forward for both, exact with InstanceNorm, took 1.24 times as long at width 128
and the same at 512 (CPU).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from vesselgan.config.schema import Variant
from vesselgan.losses.gradient_penalty import gradient_penalty
from vesselgan.losses.voxel_classes import balanced_weights, classification_loss, made_loss, one_hot_classes
from vesselgan.losses.wasserstein import critic_loss, generator_loss
from vesselgan.models.blocks import (
    iterate_spectral_norms,
    restore_spectral_vectors,
    set_trainable,
    spectral_vectors,
)
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.normalisation import at_least_float32
from vesselgan.models.segmentation_critic import SegmentationCritic
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.noise import NoiseSampler, Stream
from vesselgan.runtime.timing import Phase, Scalars

# N batch (this rank's slice), C channel (0 image, 1 vessel label, 2 tissue map if given), X Y Z voxels, L latent
Batch = Tensor | tuple[Tensor, Tensor]
"""Real patches [N, C, X, Y, Z]; where labels are given, also the patches' places in the head [N, 3]."""
CriticStep = Callable[[Any, Engine, Any, NoiseSampler, int, Variant, Phase], Scalars]
"""`critic_step`, or that of privacy.step with its own engine and batches."""


def train(
    critic: Engine,
    generator: Engine,
    batches: Iterator[Any],
    noise: NoiseSampler,
    variant: Variant,
    steps: range,
    phase: Phase,
    update_critic: CriticStep,
) -> Iterator[tuple[int, list[Scalars]]]:
    """The algorithm box: yields (generator steps done, metrics of each update, on the device) after every step."""
    for step in steps:
        metrics: list[Scalars] = []
        for position in range(step * variant.n_critic, (step + 1) * variant.n_critic):
            with phase("data_wait"):
                batch = next(batches)
            metrics.append(update_critic(critic, generator, batch, noise, position, variant, phase))
        metrics.append(generator_step(critic, generator, noise, step, phase, batch))
        yield step + 1, metrics


def critic_step(
    critic: Engine,
    generator: Engine,
    batch: Batch,
    noise: NoiseSampler,
    position: int,
    variant: Variant,
    phase: Phase = record_function,
) -> Scalars:
    """One update of the critic; the generator's weights stay as they are.

    The fake patches are made in one forward, because BatchNorm needs the whole batch. The critic treats its samples
    independently, so it may take the slice in micro-batches: the update is the same.
    """
    with phase("critic/fake"), torch.no_grad():
        fake_NCXYZ = _fakes(generator, batch, noise.latents_NL(Stream.CRITIC_LATENTS, position)).to(critic.dtype)
    vectors = spectral_vectors(critic.module)
    num_micro_batches, metrics = critic.micro_batches, Scalars()
    samples = (batch[0] if isinstance(batch, tuple) else batch, fake_NCXYZ, noise.epsilons_N(position))
    weights_K = _class_weights(critic, samples[0])
    for real, fake, epsilon in zip(*(values.chunk(num_micro_batches) for values in samples), strict=True):
        real = real.to(critic.device, non_blocking=True).to(critic.dtype)
        # Every forward takes a power iteration, as the authors' do; every micro-batch takes the same ones.
        restore_spectral_vectors(critic.module, vectors)
        with phase("critic/scores"):
            loss, losses = _critic_losses(critic.module, real, fake, weights_K)
        if weights_K is None and variant.penalty_weight:
            with phase("critic/penalty"):
                penalty = gradient_penalty(
                    critic.module.input_gradient,  # type: ignore[arg-type]
                    real,
                    fake,
                    epsilon=epsilon.to(critic.device),
                    weight=variant.penalty_weight,
                    reduction=variant.penalty_reduction,
                )
            loss = loss + penalty.value
            losses |= {"loss/gradient_penalty": penalty.value, "gp/grad_norm": penalty.grad_norm}
            losses["gp/zero_fraction"] = penalty.zero_fraction
        with phase("critic/backward"):
            critic.backward(loss)
        with phase("critic/update"):
            is_applied = critic.step()
        add_mean(metrics, {"loss/critic": loss, **losses}, num_micro_batches)
    return metrics_of_update(critic, metrics, is_applied)


def generator_step(
    critic: Engine,
    generator: Engine,
    noise: NoiseSampler,
    step: int,
    phase: Phase = record_function,
    batch: Batch | None = None,
) -> Scalars:
    """One update of the generator; the critic's weights stay as they are. batch: read where labels are given."""
    set_trainable(critic.module, False)
    # One power iteration for all micro-batches: in evaluation mode a forward, which changes nothing else, takes none.
    critic.module.eval()
    iterate_spectral_norms(critic.module)
    with phase("generator/fake"):
        fake_NCXYZ = _fakes(generator, batch, noise.latents_NL(Stream.GENERATOR_LATENTS, step)).to(critic.dtype)
    with phase("generator/scores"):
        found = _scores(critic.module, fake_NCXYZ, critic.micro_batches)
        weights_K = _class_weights(critic, fake_NCXYZ)
        loss = generator_loss(found) if weights_K is None else _classified(found, fake_NCXYZ, weights_K)
    with phase("generator/backward"):
        generator.backward(loss)
    with phase("generator/update"):
        is_applied = generator.step()
    set_trainable(critic.module, True)
    critic.module.train()
    metrics = Scalars()
    add_mean(metrics, {"loss/generator": loss}, 1)
    return metrics_of_update(generator, metrics, is_applied)


def _fakes(generator: Engine, batch: Batch | None, z_NL: Tensor) -> Tensor:
    """The generator's patches of these latents; where labels are given, of the batch's, with all that is given."""
    network, z_NL = generator.module, z_NL.to(generator.device, generator.dtype)
    if not isinstance(network, FlowGenerator):
        return network(z_NL)
    assert isinstance(batch, tuple)
    given_NGXYZ, position_N3 = batch[0][:, 1:].to(generator.device), batch[1].to(generator.device)
    image_N1XYZ = network.followed(z_NL, given_NGXYZ, position_N3)[:, :1]
    return torch.cat([image_N1XYZ, given_NGXYZ.to(image_N1XYZ.dtype)], 1)


def _class_weights(critic: Engine, patch_NCXYZ: Tensor) -> Tensor | None:
    """[K] of this batch over all ranks, for a critic that classifies voxels; None for one that scores patches."""
    if not isinstance(critic.module, SegmentationCritic):
        return None
    return balanced_weights(one_hot_classes(patch_NCXYZ[:, 1:].to(critic.device), critic.module.num_classes))


def _critic_losses(critic: nn.Module, real: Tensor, fake: Tensor, weights_K: Tensor | None) -> tuple[Tensor, Scalars]:
    """The critic's loss, without a penalty, and its parts by name."""
    found_real, found_fake = critic(real), critic(fake)
    if weights_K is None:
        loss = critic_loss(found_real, found_fake)
        return loss, {"loss/wasserstein": -loss}
    given, made = _classified(found_real, real, weights_K), made_loss(found_fake)
    return given + made, {"loss/critic_real": given, "loss/critic_fake": made}


def _classified(logits_NKXYZ: Tensor, patch_NCXYZ: Tensor, weights_K: Tensor) -> Tensor:
    one_hot_NKXYZ = one_hot_classes(patch_NCXYZ[:, 1:], len(weights_K))
    return classification_loss(logits_NKXYZ, one_hot_NKXYZ, weights_K)


def _scores(critic: nn.Module, patch_NCXYZ: Tensor, num_micro_batches: int) -> Tensor:
    """What the critic says; in micro-batches its activations are recomputed in the backward instead of kept."""
    if num_micro_batches == 1:
        return critic(patch_NCXYZ)
    chunks = patch_NCXYZ.chunk(num_micro_batches)
    return torch.cat([checkpoint(critic, chunk_NCXYZ, use_reentrant=False) for chunk_NCXYZ in chunks])


def add_mean(metrics: Scalars, values: Scalars, count: int) -> None:
    """Add to `metrics` the share of one micro-batch of `count`."""
    for name, value in values.items():
        metrics[name] = metrics.get(name, 0.0) + value.detach().to(at_least_float32(value.dtype)) / count


def metrics_of_update(engine: Engine, metrics: Scalars, is_applied: bool) -> Scalars:
    """A skipped update has no losses: it is counted, so that no mean is taken over numbers like NaN."""
    skipped = {f"amp/{engine.name}_skipped": torch.tensor(float(not is_applied))}
    if not is_applied:
        return skipped
    return metrics | skipped | {f"grad_norm/{engine.name}": engine.gradient_norm}
