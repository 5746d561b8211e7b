"""One training step, the authors' against ours: time, memory, work, and how near the machine's peak it comes.

Candidates: `authors`, their step restated (reference_step.py); `bare`, our step with torch's optimizers alone (not in
fp16, which needs masters and a loss scale); `engine`, our step as it trains, in DeepSpeed's engines with ZeRO. In fp16
on a CPU, where autocast has no half, the engine alone. Weights, latents and epsilons are the same; the patches are
noise, since what they show costs nothing, and lie on the device. In half the authors' step runs under autocast with
loss scalers, as theirs does.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vesselgan.config import deepspeed as deepspeed_config
from vesselgan.config.schema import Benchmark
from vesselgan.models.blocks import compute_dtype
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.models.variants import build_networks, init_networks
from vesselgan.runtime import distributed
from vesselgan.runtime.adam import AdamWithoutMomentum
from vesselgan.runtime.device_memory import peak_bytes
from vesselgan.runtime.engine import Engine, build
from vesselgan.runtime.noise import NoiseSampler, Stream
from vesselgan.runtime.precision import torch_type
from vesselgan.tools.benchmark.interleave import Timing, interleave
from vesselgan.tools.benchmark.loader import shape_of
from vesselgan.tools.benchmark.profile import matmul_flop_per_s, shares_of
from vesselgan.tools.benchmark.reference_step import AuthorsCritic, AuthorsGenerator, AuthorsStep, copy_weights
from vesselgan.trainer.batch_plan import BatchPlan
from vesselgan.training.gan import critic_step, generator_step

# N batch, C channel, X Y Z voxels, L latent
WARMUP_STEPS = 12
"""Steps in which loss scales find their level; one that overflows costs less than others."""
Step = Callable[[int], None]
"""Takes the step's number; returns when the device is done."""
Candidate = Callable[[Benchmark, torch.device], Step]
"""Builds the step of a candidate."""


def run(config: Benchmark) -> dict[str, Any]:
    """`measure` of the authors' step beside ours."""
    if config.variant.precision != "fp16":
        return measure(config, CANDIDATES)
    device = distributed.choose_device(config.runtime.device, 0)
    return measure(config, ("engine",) if device.type == "cpu" else ("authors", "engine"))


def measure(config: Benchmark, names: Iterable[str]) -> dict[str, Any]:
    """Per candidate: CPU and wall time of a step, peak memory; TFLOP counted; ratios; shares of ours by kind of work.

    Peak memory is what a process of its own grows by from before the networks are made to the end of the second step,
    when the optimizers have their state; on a GPU what the tensors of the third step take.
    """
    device = distributed.choose_device(config.runtime.device, 0)
    # As in training; the authors leave cuDNN its own choice.
    distributed.select_kernels(deterministic=False)
    candidates = {name: CANDIDATES[name] for name in names}
    peaks = peaks_of(candidates, config)
    torch.set_num_threads(config.threads)
    steps = {name: build_step(config, device) for name, build_step in candidates.items()}
    if config.variant.precision == "fp16":
        for step, number in product(steps.values(), range(WARMUP_STEPS)):
            step(number)
    timings = interleave(steps, config.repeats)
    tflop = {name: (_authors_flop if name == "authors" else our_flop)(config) / 1e12 for name in candidates}
    computed_in = compute_dtype(torch.empty(0, dtype=torch_type(config.variant.precision), device=device))
    peak_tflop_per_s = matmul_flop_per_s(computed_in, device) / 1e12
    # CPU time, where other processes share the cores.
    seconds = {name: timing.wall_s if device.type == "cuda" else timing.cpu_s for name, timing in timings.items()}
    result: dict[str, Any] = {
        "variant": config.variant.name,
        "width": config.variant.width,
        "precision": config.variant.precision,
        "patch_shape": list(config.patch_shape),
        "batch_size": config.batch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": config.threads,
        "tflop": tflop,
        "peak_gib": {name: peak / 2**30 for name, peak in peaks.items()},
        **{name: {"cpu_ms": 1e3 * timing.cpu_s, "wall_ms": 1e3 * timing.wall_s} for name, timing in timings.items()},
        "matmul_tflop_per_s": peak_tflop_per_s,
        "share_of_matmul_peak": {name: tflop[name] / step_s / peak_tflop_per_s for name, step_s in seconds.items()},
    }
    result["shares_of_step"], busy_s = shares_of(partial(steps["engine"], config.repeats), device)
    if device.type == "cuda":
        result["idle_share"] = 1 - busy_s / timings["engine"].wall_s
    if "authors" in candidates:
        result["authors_over"] = _authors_over(timings, peaks) | {"tflop": tflop["authors"] / tflop["engine"]}
    distributed.stop()
    return result


def _authors_over(timings: Mapping[str, Timing], peaks: Mapping[str, int]) -> dict[str, Any]:
    theirs = timings["authors"]
    return {
        name: {
            "cpu": theirs.cpu_s / timing.cpu_s,
            "wall": theirs.wall_s / timing.wall_s,
            "peak": peaks["authors"] / peaks[name] if peaks[name] else None,
        }
        for name, timing in timings.items()
        if name != "authors"
    }


def authors_step(config: Benchmark, device: torch.device, dtype: torch.dtype = torch.float32) -> AuthorsStep:
    """Their step with our starting weights and learning rates."""
    variant, shape = config.variant, shape_of(config.patch_shape)
    our_critic, our_generator = networks_of(config)
    critic = AuthorsCritic(shape, variant.width, cast(str, variant.critic_norm))
    generator = AuthorsGenerator(shape, variant.width, variant.latent_size)
    copy_weights(our_critic, critic)
    copy_weights(our_generator, generator)
    critic.to(device, dtype), generator.to(device, dtype)
    beta1, beta2 = map(float, variant.betas)
    step = AuthorsStep(
        critic,
        generator,
        torch.optim.Adam(critic.parameters(), lr=variant.learning_rate_critic, betas=(beta1, beta2)),
        torch.optim.Adam(generator.parameters(), lr=variant.learning_rate_generator, betas=(beta1, beta2)),
    )
    if variant.precision != "fp32":
        step.autocast = partial(torch.autocast, device.type, torch_type(variant.precision))
    if variant.precision == "fp16":
        step.scalers = (torch.amp.GradScaler(device.type), torch.amp.GradScaler(device.type))
    return step


class BareEngine:
    """As much of an engine as a training step calls, in plain torch: no loss scale, no ranks, no checks."""

    micro_batches = 1

    def __init__(self, name: str, module: nn.Module, learning_rate: float, beta2: float) -> None:
        self.name, self.module = name, module
        weight = next(module.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = AdamWithoutMomentum(trainable, lr=learning_rate, beta2=beta2)
        self.gradient_norm = torch.zeros((), device=self.device)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> bool:
        self._optimizer.step()
        self._optimizer.zero_grad()
        return True


def bare_engines(
    config: Benchmark, device: torch.device, dtype: torch.dtype | None = None
) -> tuple[BareEngine, BareEngine]:
    """The critic's and the generator's."""
    variant = config.variant
    assert variant.betas[0] == 0, "the bare step has Adam without momentum only"
    critic, generator = (network.to(device, dtype or torch_type(variant.precision)) for network in networks_of(config))
    return (
        BareEngine("critic", critic, variant.learning_rate_critic, variant.betas[1]),
        BareEngine("generator", generator, variant.learning_rate_generator, variant.betas[1]),
    )


def _authors(config: Benchmark, device: torch.device) -> Step:
    step, noise, real_NCXYZ = authors_step(config, device), noise_of(config), patches(config, device)

    def once(number: int) -> None:
        critic_latents_NL, generator_latents_NL = (
            noise.latents_NL(stream, abs(number)).to(device)
            for stream in (Stream.CRITIC_LATENTS, Stream.GENERATOR_LATENTS)
        )
        epsilon = noise.epsilons_N(abs(number))[0].to(device)
        latents = critic_latents_NL, generator_latents_NL
        with torch.backends.cudnn.flags(benchmark=False, allow_tf32=True):
            step(real_NCXYZ, latents, epsilon, penalty_weight=config.variant.penalty_weight)
            wait(device)

    return once


def _bare(config: Benchmark, device: torch.device) -> Step:
    return ours(config, device, *bare_engines(config, device))


def _engine(config: Benchmark, device: torch.device) -> Step:
    return engines_and_step(config)[1]


def engines_and_step(config: Benchmark, *, zero_stage: int | None = None) -> tuple[tuple[Engine, Engine], Step]:
    """Critic and generator in DeepSpeed's engines, and a step of both; zero_stage: None is the shipped JSON's."""
    variant = config.variant
    world = distributed.start(distributed.choose_device(config.runtime.device, 0).type)
    torch.set_num_threads(config.threads)
    name, raw = deepspeed_config.read(None, variant.precision)
    if zero_stage is not None:
        raw = raw | {"zero_optimization": raw["zero_optimization"] | {"stage": zero_stage}}
    deepspeed_json = deepspeed_config.complete(name, raw, variant.precision)
    settings = BatchPlan.of(config.batch_size, None, ranks=1).resolve(deepspeed_json)
    rates = (variant.learning_rate_critic, variant.learning_rate_generator)
    critic, generator = (
        build(name, network, learning_rate=rate, betas=variant.betas, settings=settings, world=world)
        for name, network, rate in zip(("critic", "generator"), networks_of(config), rates, strict=True)
    )
    return (critic, generator), ours(config, world.device, critic, generator)


CANDIDATES = {"authors": _authors, "bare": _bare, "engine": _engine}


def ours(config: Benchmark, device: torch.device, critic: Any, generator: Any) -> Step:
    """Our step on these engines."""
    noise, real_NCXYZ = noise_of(config), patches(config, device)

    def once(number: int) -> None:
        critic_step(critic, generator, real_NCXYZ, noise, abs(number), config.variant)
        generator_step(critic, generator, noise, abs(number))
        wait(device)

    return once


def networks_of(config: Benchmark) -> tuple[Critic, Generator]:
    """Critic and generator with their first weights, on the CPU."""
    networks = build_networks(config.variant, config.patch_shape)
    init_networks(networks, config.seed)
    return cast(Critic, networks["critic"]), cast(Generator, networks["generator"])


def noise_of(config: Benchmark) -> NoiseSampler:
    return NoiseSampler(config.seed, config.batch_size, config.variant.latent_size)


def patches(config: Benchmark, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(config.seed)
    return torch.rand(config.batch_size, 2, *config.patch_shape, generator=generator).mul_(2).sub_(1).to(device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peaks_of(candidates: Mapping[str, Candidate], config: Benchmark) -> dict[str, int]:
    """Bytes by which a process of its own grows in two steps of each candidate; on a GPU those of its tensors."""
    if distributed.choose_device(config.runtime.device, 0).type == "cuda":
        return {name: _peak_bytes(candidate, config) for name, candidate in candidates.items()}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return {name: pool.submit(_peak_bytes, candidate, config).result() for name, candidate in candidates.items()}


def _peak_bytes(candidate: Candidate, config: Benchmark) -> int:
    torch.set_num_threads(config.threads)
    device = distributed.choose_device(config.runtime.device, 0)
    if candidate is _engine:
        # Its imports and the process group are not the step's.
        distributed.start(device.type)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else peak_bytes(device)
    step = candidate(config, device)
    for number in range(2):
        step(number)
    if device.type == "cuda":
        # Without what cuDNN takes once, to try its kernels.
        torch.cuda.reset_peak_memory_stats(device)
        step(2)
    return peak_bytes(device) - before


def _authors_flop(config: Benchmark) -> int:
    with torch.device("meta"):
        shape, variant = shape_of(config.patch_shape), config.variant
        critic = AuthorsCritic(shape, variant.width, cast(str, variant.critic_norm))
        generator = AuthorsGenerator(shape, variant.width, variant.latent_size)
        real_NCXYZ = torch.empty(config.batch_size, 2, *shape)
        latent_NL = torch.empty(config.batch_size, variant.latent_size)
        critic_optimizer, generator_optimizer = (
            torch.optim.SGD(network.parameters()) for network in (critic, generator)
        )
        step = AuthorsStep(critic, generator, critic_optimizer, generator_optimizer)
        with FlopCounterMode(display=False) as counter:
            step(real_NCXYZ, (latent_NL, latent_NL), torch.empty(()), penalty_weight=1.0)
    return counter.get_total_flops()


def our_flop(config: Benchmark) -> int:
    """Operations of our step, a multiply-add as two."""
    with torch.device("meta"):
        networks = build_networks(config.variant, config.patch_shape)
        real_NCXYZ = torch.empty(config.batch_size, 2, *config.patch_shape)
    critic: Any = BareEngine("critic", networks["critic"], 0.0, 0.9)
    generator: Any = BareEngine("generator", networks["generator"], 0.0, 0.9)
    noise = noise_of(config)
    with FlopCounterMode(display=False) as counter:
        critic_step(critic, generator, real_NCXYZ, noise, 0, config.variant)
        generator_step(critic, generator, noise, 0)
    return counter.get_total_flops()
