"""The GAN's training: n_critic critic steps, one generator step, and again (Subramaniam 2022, eq. 1 and 2).

Everything random is a function of (seed, position), so a resumed run continues exactly and a result does not depend on
the number of ranks. Where we differ from the authors' code: the fake patches of the critic step carry no graph, the
critic is frozen in the generator step, and each of the n_critic steps is a real step on a fresh batch.
Real and fake in one forward of an InstanceNorm critic, where that is exact, took 1.24 times as long at width 128 and
the same at 512 (CPU): they go one after the other.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from vesselgan.config.schema import Variant
from vesselgan.losses.gradient_penalty import gradient_penalty
from vesselgan.losses.wasserstein import critic_loss, generator_loss
from vesselgan.models.blocks import (
    iterate_spectral_norms,
    restore_spectral_vectors,
    set_trainable,
    spectral_vectors,
)
from vesselgan.models.normalisation import at_least_float32
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.noise import NoiseSampler
from vesselgan.runtime.timing import Phase, Scalars

# N batch (this rank's part), C channel (0 image, 1 vessel label), X Y Z voxels, L latent
CriticUpdate = Callable[[Any, Engine, Any, NoiseSampler, int, Variant, Phase], Scalars]
"""`critic_step`, or privacy.step's with an engine and batches of its own."""


def critic_step(
    critic: Engine,
    generator: Engine,
    real_NCXYZ: Tensor,
    draws: NoiseSampler,
    position: int,
    variant: Variant,
    phase: Phase = record_function,
) -> Scalars:
    """One update of the critic; the generator's weights stay as they are.

    The fake patches are made in one go, so that BatchNorm sees the whole batch; the critic, whose samples do not know
    of each other, may take its share in turns (micro-batches): the update is the same.
    """
    with phase("critic/fake"), torch.no_grad():
        latents_NL = draws.latents_NL(0, position).to(generator.device, generator.dtype)
        fake_NCXYZ = generator.module(latents_NL).to(critic.dtype)
    vectors = spectral_vectors(critic.module)
    parts, told = critic.micro_batches, Scalars()
    shares = (share.chunk(parts) for share in (real_NCXYZ, fake_NCXYZ, draws.epsilons_N(position)))
    for real, fake, epsilon in zip(*shares, strict=True):
        real = real.to(critic.device, non_blocking=True).to(critic.dtype)
        # Every forward takes a power iteration, as the authors' do; every turn takes the same ones.
        restore_spectral_vectors(critic.module, vectors)
        with phase("critic/scores"):
            wasserstein = critic_loss(critic.module(real), critic.module(fake))
        with phase("critic/penalty"):
            penalty = gradient_penalty(
                critic.module.input_gradient,
                real,
                fake,
                epsilon=epsilon.to(critic.device),
                weight=variant.penalty_weight,
                reduction=variant.penalty_reduction,
            )
        loss = wasserstein + penalty.value
        with phase("critic/backward"):
            critic.backward(loss)
        with phase("critic/update"):
            is_applied = critic.step()
        _add(
            told, {"loss/critic": loss, "loss/wasserstein": -wasserstein, "loss/gradient_penalty": penalty.value}, parts
        )
        _add(told, {"gp/grad_norm": penalty.grad_norm, "gp/zero_fraction": penalty.zero_fraction}, parts)
    return _of_update(critic, told, is_applied)


def generator_step(
    critic: Engine, generator: Engine, draws: NoiseSampler, step: int, phase: Phase = record_function
) -> Scalars:
    """One update of the generator; the critic's weights stay as they are."""
    told = Scalars()
    set_trainable(critic.module, False)
    iterate_spectral_norms(critic.module)
    with phase("generator/fake"):
        latents_NL = draws.latents_NL(1, step).to(generator.device, generator.dtype)
        fake_NCXYZ = generator.module(latents_NL).to(critic.dtype)
    with phase("generator/scores"):
        loss = generator_loss(_scores_in_turns(critic.module, fake_NCXYZ, critic.micro_batches))
    with phase("generator/backward"):
        generator.backward(loss)
    with phase("generator/update"):
        is_applied = generator.step()
    _add(told, {"loss/generator": loss}, 1)
    set_trainable(critic.module, True)
    critic.module.train()
    return _of_update(generator, told, is_applied)


def train(
    critic: Engine,
    generator: Engine,
    batches: Iterator[Any],
    draws: NoiseSampler,
    variant: Variant,
    *,
    start: int,
    stop: int,
    phase: Phase = record_function,
    update_critic: CriticUpdate = critic_step,
) -> Iterator[tuple[int, list[Scalars]]]:
    """The algorithm box: yields (generator steps done, what each update told, on the device) after every step."""
    for step in range(start, stop):
        told: list[Scalars] = []
        for position in range(step * variant.n_critic, (step + 1) * variant.n_critic):
            with phase("data_wait"):
                batch = next(batches)
            told.append(update_critic(critic, generator, batch, draws, position, variant, phase))
        told.append(generator_step(critic, generator, draws, step, phase))
        yield step + 1, told


def _scores_in_turns(critic: nn.Module, patch_NCXYZ: Tensor, turns: int) -> Tensor:
    """Scores [N]; in more than one turn the critic's activations are made again in the backward instead of kept."""
    if turns == 1:
        return critic(patch_NCXYZ)
    return torch.cat([checkpoint(critic, part, use_reentrant=False) for part in patch_NCXYZ.chunk(turns)])


def _of_update(engine: Engine, told: Scalars, is_applied: bool) -> Scalars:
    """What an update tells. A skipped one has no losses: it is counted, and no mean is taken over numbers like NaN."""
    skipped = {f"{engine.name}_skipped": torch.tensor(float(not is_applied))}
    if not is_applied:
        return skipped
    return told | skipped | {f"{engine.name}_gradient_norm": engine.gradient_norm}


def _add(told: Scalars, values: Scalars, parts: int) -> None:
    for name, value in values.items():
        told[name] = told.get(name, 0.0) + value.detach().to(at_least_float32(value.dtype)) / parts
