"""The GAN's training: n_critic critic steps, one generator step, and again (Subramaniam 2022, eq. 1 and 2).

Everything random is a function of (seed, position), so a resumed run continues exactly and a result does not depend on
the number of ranks. Where we differ from the authors' code: the fake patches of the critic step carry no graph, the
critic is frozen in the generator step, and each of the n_critic steps is a real step on a fresh batch.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function as phase

from vesselgan.config.schema import Variant
from vesselgan.losses.gradient_penalty import gradient_penalty
from vesselgan.losses.wasserstein import critic_loss, generator_loss
from vesselgan.models.blocks import set_trainable
from vesselgan.runtime.engine import Engine

# N batch (this rank's part), C channel (0 image, 1 vessel label), X Y Z voxels, L latent
Scalars = dict[str, Tensor]


@dataclass(frozen=True)
class Draws:
    """Latents and epsilons of the global batch at a position, cut to this rank's part."""

    seed: int
    batch_size: int
    latent_size: int
    rank: int
    world_size: int

    def latents_NL(self, stream: int, position: int) -> Tensor:
        """Standard normal; `stream` 0 for the critic's steps, 1 for the generator's."""
        return self._mine(
            self._source(stream, position).standard_normal((self.batch_size, self.latent_size), np.float32)
        )

    def epsilons_N(self, position: int) -> Tensor:
        """Uniform on [0, 1): where on the line between real and fake the penalty is taken."""
        return self._mine(self._source(2, position).random(self.batch_size, np.float32))

    def _source(self, stream: int, position: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, stream, position]))

    def _mine(self, values: np.ndarray) -> Tensor:
        part = self.batch_size // self.world_size
        return torch.from_numpy(values[self.rank * part : (self.rank + 1) * part])


def critic_step(
    critic: Engine, generator: Engine, real_NCXYZ: Tensor, draws: Draws, position: int, variant: Variant
) -> Scalars:
    """One update of the critic; the generator's weights stay as they are."""
    parts = critic.micro_batches
    told: Scalars = {}
    chunks = zip(
        real_NCXYZ.chunk(parts),
        draws.latents_NL(0, position).chunk(parts),
        draws.epsilons_N(position).chunk(parts),
        strict=True,
    )
    for real, latents, epsilons in chunks:
        real = real.to(critic.deepspeed.device, critic.dtype)
        with phase("critic/fake"), torch.no_grad():
            fake = generator.module(latents.to(real.device, generator.dtype)).to(critic.dtype)
        with phase("critic/scores"):
            score_real, score_fake = critic.module(real), critic.module(fake)
            wasserstein = critic_loss(score_real, score_fake)
        with phase("critic/penalty"):
            penalty = gradient_penalty(
                critic.module,
                real,
                fake,
                epsilon=epsilons.to(real.device),
                weight=variant.penalty_weight,
                form=variant.penalty_form,
            )
        with phase("critic/backward"):
            critic.backward(wasserstein + penalty)
        with phase("critic/update"):
            applied = critic.step()
        _add(told, "critic_loss", (wasserstein + penalty) / parts)
        _add(told, "wasserstein", -wasserstein / parts)
        _add(told, "penalty", penalty / parts)
    told["critic_skipped"] = torch.tensor(float(not applied), device=real.device)
    return told


def generator_step(critic: Engine, generator: Engine, draws: Draws, step: int) -> Scalars:
    """One update of the generator; the critic's weights stay as they are."""
    told: Scalars = {}
    set_trainable(critic.module, False)
    for latents in draws.latents_NL(1, step).chunk(generator.micro_batches):
        with phase("generator/fake"):
            fake = generator.module(latents.to(generator.deepspeed.device, generator.dtype))
        with phase("generator/scores"):
            loss = generator_loss(critic.module(fake.to(critic.dtype)))
        with phase("generator/backward"):
            generator.backward(loss)
        with phase("generator/update"):
            applied = generator.step()
        _add(told, "generator_loss", loss / generator.micro_batches)
    set_trainable(critic.module, True)
    told["generator_skipped"] = torch.tensor(float(not applied), device=fake.device)
    return told


def train(
    critic: Engine,
    generator: Engine,
    batches: Iterator[Tensor],
    draws: Draws,
    variant: Variant,
    *,
    start: int,
    stop: int,
) -> Iterator[tuple[int, Scalars]]:
    """The algorithm box: yields (generator steps done, this step's scalars on the device) after every step."""
    for step in range(start, stop):
        scalars: Scalars = {}
        began = time.perf_counter()
        for turn in range(variant.n_critic):
            real_NCXYZ = next(batches)
            waited = time.perf_counter() - began if turn == 0 else 0.0
            position = step * variant.n_critic + turn
            scalars = critic_step(critic, generator, real_NCXYZ, draws, position, variant)
        scalars |= generator_step(critic, generator, draws, step)
        scalars["data_wait_ms"] = torch.tensor(1000.0 * waited)
        yield step + 1, scalars


def _add(told: Scalars, name: str, value: Tensor) -> None:
    told[name] = told.get(name, 0.0) + value.detach().float()
