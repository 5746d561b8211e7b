"""A private critic step against a plain one of the same losses: time and memory.

`plain`: real and fake in a batch, one backward; `private`: one unit after the other, each gradient clipped, then noise
from the key for every parameter. Both make their fakes and update with Adam; a batch of config.batch_size units.
"""

from typing import Any

import torch

from vesselgan.config.schema import Benchmark
from vesselgan.core.errors import UsageError
from vesselgan.losses.wasserstein import critic_loss
from vesselgan.privacy.engine import build_private
from vesselgan.privacy.step import PoissonBatch, critic_step
from vesselgan.runtime import distributed
from vesselgan.runtime.distributed import World
from vesselgan.runtime.noise import Stream
from vesselgan.tools.benchmark import step
from vesselgan.tools.benchmark.interleave import interleave


def run(config: Benchmark) -> dict[str, Any]:
    """Per candidate: CPU and wall time of a critic step, and the growth of a process of its own; private over plain."""
    if config.variant.dp is None or config.variant.flow is not None:
        raise UsageError(
            f"target=private with variant={config.variant.name}, which has no private critic: variant=dpgan"
        )
    device = distributed.choose_device(config.runtime.device, 0)
    peaks = step.peaks_of(CANDIDATES, config)
    torch.set_num_threads(config.threads)
    timings = interleave({name: candidate(config, device) for name, candidate in CANDIDATES.items()}, config.repeats)
    return {
        "width": config.variant.width,
        "patch_shape": list(config.patch_shape),
        "batch_size": config.batch_size,
        "threads": config.threads,
        **{
            name: {"cpu_ms": 1e3 * timing.cpu_s, "wall_ms": 1e3 * timing.wall_s, "peak_mib": peaks[name] / 2**20}
            for name, timing in timings.items()
        },
        "private_over_plain": {
            "cpu": timings["private"].cpu_s / timings["plain"].cpu_s,
            "wall": timings["private"].wall_s / timings["plain"].wall_s,
            "peak": peaks["private"] / peaks["plain"] if peaks["plain"] else None,
        },
    }


def _plain(config: Benchmark, device: torch.device) -> step.Step:
    critic, generator = step.bare_engines(config, device)
    noise, real_NCXYZ = step.noise_of(config), step.patches(config, device)

    def once(number: int) -> None:
        with torch.no_grad():
            fake_NCXYZ = generator.module(noise.latents_NL(Stream.CRITIC_LATENTS, abs(number)).to(device))
        critic.backward(critic_loss(critic.module(real_NCXYZ), critic.module(fake_NCXYZ)))
        critic.step()
        step.wait(device)

    return once


def _private(config: Benchmark, device: torch.device) -> step.Step:
    variant, dp = config.variant, config.variant.dp
    assert dp is not None
    noise_multiplier = dp.noise_multiplier
    assert noise_multiplier is not None
    bare, plain_generator = step.bare_engines(config, device)
    generator: Any = plain_generator
    critic = build_private(
        "critic",
        bare.module,
        learning_rate=variant.learning_rate_critic,
        betas=variant.betas,
        noise_multiplier=noise_multiplier,
        clip_norm=dp.clip_norm,
        expected_batch=config.batch_size,
        weight_clip=dp.weight_clip,
        world=World(rank=0, size=1, local_rank=0, device=device),
    )
    critic.key = config.seed
    noise, batch = step.noise_of(config), PoissonBatch(range(config.batch_size), step.patches(config, device))

    def once(number: int) -> None:
        critic_step(critic, generator, batch, noise, critic.num_releases, variant)
        step.wait(device)

    return once


CANDIDATES = {"plain": _plain, "private": _private}
