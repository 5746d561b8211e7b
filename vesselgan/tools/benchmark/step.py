"""One training step, the authors' against ours: time, memory, work, and how near the machine's peak it comes.

Competitors: `authors`, their step restated (see authors.py); `bare`, our step with torch's optimizers alone (not in
fp16, where without masters and loss scale it would be another); `engine`, our step as it trains, in DeepSpeed's engines
with ZeRO. Weights, latents and epsilons are the same; the patches are noise, since what they show costs nothing, and
lie on the device. In half the authors' step runs under autocast with loss scalers, as theirs does.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vesselgan.config import deepspeed as deepspeed_config
from vesselgan.config.schema import Benchmark
from vesselgan.core.errors import UsageError
from vesselgan.models.blocks import init_weights
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.runtime import distributed
from vesselgan.runtime.adam import AdamWithoutMomentum
from vesselgan.runtime.device_memory import peak_bytes
from vesselgan.runtime.engine import build
from vesselgan.runtime.noise import NoiseSampler
from vesselgan.tools.benchmark.interleave import interleave
from vesselgan.tools.benchmark.profile import matmul_flop_per_s, shares_of
from vesselgan.tools.benchmark.reference_step import AuthorsCritic, AuthorsGenerator, AuthorsStep, copy_weights
from vesselgan.training.gan import critic_step, generator_step

# N batch, C channel, X Y Z voxels, L latent
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SETTLING = 12
"""Steps in which loss scales find their level; one that overflows costs less than others."""
Step = Callable[[int], None]
"""Takes the number of the step; waits until it is done."""
Side = Callable[[Benchmark, torch.device], Step]
"""A competitor, ready to take steps."""


def run(config: Benchmark) -> dict[str, Any]:
    """Per competitor: CPU and wall time of a step, peak memory; TFLOP counted; ratios; shares of ours by kind of work.

    Peak memory is what a process of its own grows by from before the networks are made to the end of the second step,
    when the optimizers have their state; on a GPU what the tensors of the third step take.
    """
    device = distributed.choose_device(config.runtime.device, 0)
    _prepare(config, device)
    sides = {name: side for name, side in SIDES.items() if name != "bare" or config.variant.precision != "fp16"}
    peaks = peaks_of(sides, config)
    torch.set_num_threads(config.threads)
    facts: dict[str, Any] = {
        "variant": config.variant.name,
        "width": config.variant.width,
        "precision": config.variant.precision,
        "patch_shape": list(config.patch_shape),
        "batch_size": config.batch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": config.threads,
        "tflop": {"authors": _authors_flop(config) / 1e12, "ours": our_flop(config) / 1e12},
        "peak_gib": {name: peak / 2**30 for name, peak in peaks.items()},
    }
    steps = {name: side(config, device) for name, side in sides.items()}
    if config.variant.precision == "fp16":
        for step, number in product(steps.values(), range(SETTLING)):
            step(number)
    costs = interleave(steps, config.repeats)
    facts |= {name: {"cpu_ms": 1e3 * cost.cpu_s, "wall_ms": 1e3 * cost.wall_s} for name, cost in costs.items()}
    peak_flop = matmul_flop_per_s(TYPES[config.variant.precision], device)
    facts["matmul_tflop_per_s"] = peak_flop / 1e12
    # A CPU that others use too is asked for the time it worked.
    seconds = {name: cost.wall_s if device.type == "cuda" else cost.cpu_s for name, cost in costs.items()}
    facts["share_of_matmul_peak"] = {
        name: 1e12 * facts["tflop"]["authors" if name == "authors" else "ours"] / took / peak_flop
        for name, took in seconds.items()
    }
    facts["shares_of_step"] = shares_of(partial(steps["engine"], config.repeats), device)
    facts["authors_over"] = {
        name: {
            "cpu": costs["authors"].cpu_s / costs[name].cpu_s,
            "wall": costs["authors"].wall_s / costs[name].wall_s,
            "peak": peaks["authors"] / peaks[name] if peaks[name] else None,
        }
        for name in sides
        if name != "authors"
    }
    facts["authors_over"]["tflop"] = facts["tflop"]["authors"] / facts["tflop"]["ours"]
    distributed.stop()
    return facts


def _prepare(config: Benchmark, device: torch.device) -> None:
    # As in training: each convolution's kernels are tried once, the authors' too.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    if config.variant.precision == "fp16" and device.type == "cpu":
        raise UsageError(
            "variant.precision=fp16 on a CPU: autocast, which the authors' step needs, has no half there; compare in "
            "fp32 or bf16, or on a GPU"
        )


def authors_step(config: Benchmark, device: torch.device, dtype: torch.dtype = torch.float32) -> AuthorsStep:
    """Their step with our starting weights and learning rates."""
    variant, shape = config.variant, tuple(config.patch_shape)
    critic, generator = _networks(config)
    theirs = AuthorsCritic(shape, variant.width, variant.critic_norm)
    maker = AuthorsGenerator(shape, variant.width, variant.latent_size)
    copy_weights(critic, theirs)
    copy_weights(generator, maker)
    theirs.to(device, dtype), maker.to(device, dtype)
    rates = (variant.learning_rate_critic, variant.learning_rate_generator)
    optimizers = (
        torch.optim.Adam(network.parameters(), lr=rate, betas=tuple(map(float, variant.betas)))
        for network, rate in zip((theirs, maker), rates, strict=True)
    )
    step = AuthorsStep(theirs, maker, *optimizers)
    if variant.precision != "fp32":
        step.autocast = partial(torch.autocast, device.type, TYPES[variant.precision])
    if variant.precision == "fp16":
        step.scalers = (torch.amp.GradScaler(device.type), torch.amp.GradScaler(device.type))
    return step


class BareEngine:
    """What a training step asks of an engine, with torch's means alone: no loss scale, no ranks, nothing checked."""

    micro_batches = 1

    def __init__(self, name: str, module: nn.Module, learning_rate: float, beta2: float) -> None:
        self.name, self.module = name, module
        first = next(module.parameters())
        self.device, self.dtype = first.device, first.dtype
        learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = AdamWithoutMomentum(learned, lr=learning_rate, beta2=beta2)
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
    """Critic's and generator's."""
    variant = config.variant
    assert variant.betas[0] == 0, "the bare step knows Adam without momentum only"
    networks = (network.to(device, dtype or TYPES[variant.precision]) for network in _networks(config))
    rates = (variant.learning_rate_critic, variant.learning_rate_generator)
    names = ("critic", "generator")
    return tuple(
        BareEngine(name, network, rate, variant.betas[1])
        for name, network, rate in zip(names, networks, rates, strict=True)
    )


def _authors(config: Benchmark, device: torch.device) -> Step:
    step, draws, real_NCXYZ = authors_step(config, device), draws_of(config), patches(config, device)

    def once(number: int) -> None:
        latents = tuple(draws.latents_NL(stream, abs(number)).to(device) for stream in (0, 1))
        epsilon = draws.epsilons_N(abs(number))[0].to(device)
        step(real_NCXYZ, latents, epsilon, penalty_weight=config.variant.penalty_weight)
        wait(device)

    return once


def _bare(config: Benchmark, device: torch.device) -> Step:
    return ours(config, device, *bare_engines(config, device))


def _engine(config: Benchmark, device: torch.device) -> Step:
    variant = config.variant
    world = distributed.start(device.type)
    torch.set_num_threads(config.threads)
    _, raw = deepspeed_config.read(None, variant.precision)
    settings = deepspeed_config.resolve(raw, batch_size=config.batch_size, batch_per_gpu=None, world_size=1)
    rates = (variant.learning_rate_critic, variant.learning_rate_generator)
    engines = (
        build(
            name,
            network,
            learning_rate=rate,
            betas=variant.betas,
            settings=settings,
            world=world,
            program="python launch/benchmark.py target=step",
            key="variant.precision",
        )
        for name, network, rate in zip(("critic", "generator"), _networks(config), rates, strict=True)
    )
    return ours(config, device, *engines)


SIDES = {"authors": _authors, "bare": _bare, "engine": _engine}


def ours(config: Benchmark, device: torch.device, critic: Any, generator: Any) -> Step:
    """Our step on the engines of the two."""
    draws, real_NCXYZ = draws_of(config), patches(config, device)

    def once(number: int) -> None:
        critic_step(critic, generator, real_NCXYZ, draws, abs(number), config.variant)
        generator_step(critic, generator, draws, abs(number))
        wait(device)

    return once


def _networks(config: Benchmark) -> tuple[Critic, Generator]:
    variant, shape = config.variant, tuple(config.patch_shape)
    critic, generator = (
        Critic(shape, variant.width, variant.critic_norm),
        Generator(shape, variant.width, variant.latent_size, variant.generator_norm),
    )
    init_weights(critic, config.seed)
    init_weights(generator, config.seed + 1)
    return critic, generator


def draws_of(config: Benchmark) -> NoiseSampler:
    return NoiseSampler(config.seed, config.batch_size, config.variant.latent_size, 0, 1)


def patches(config: Benchmark, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(config.seed)
    return torch.rand(config.batch_size, 2, *config.patch_shape, generator=generator).mul_(2).sub_(1).to(device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peaks_of(sides: Mapping[str, Side], config: Benchmark) -> dict[str, int]:
    """What a process of its own grows by in two steps of each side; a GPU: what its tensors take. Bytes."""
    if distributed.choose_device(config.runtime.device, 0).type == "cuda":
        return {name: _peak_bytes(side, config) for name, side in sides.items()}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as alone:
        return {name: alone.submit(_peak_bytes, side, config).result() for name, side in sides.items()}


def _peak_bytes(side: Side, config: Benchmark) -> int:
    torch.set_num_threads(config.threads)
    device = distributed.choose_device(config.runtime.device, 0)
    if side is _engine:
        # Its imports and the process group are not the step's.
        distributed.start(device.type)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else peak_bytes(device)
    step = side(config, device)
    for number in range(2):
        step(number)
    if device.type == "cuda":
        # Without what cuDNN takes once, to try its kernels.
        torch.cuda.reset_peak_memory_stats(device)
        step(2)
    return peak_bytes(device) - before


def _authors_flop(config: Benchmark) -> int:
    with torch.device("meta"):
        shape, variant = tuple(config.patch_shape), config.variant
        critic = AuthorsCritic(shape, variant.width, variant.critic_norm)
        generator = AuthorsGenerator(shape, variant.width, variant.latent_size)
        real_NCXYZ = torch.empty(config.batch_size, 2, *shape)
        latent_NL = torch.empty(config.batch_size, variant.latent_size)
        optimizers = (torch.optim.SGD(network.parameters()) for network in (critic, generator))
        step = AuthorsStep(critic, generator, *optimizers)
        with FlopCounterMode(display=False) as counter:
            step(real_NCXYZ, (latent_NL, latent_NL), torch.empty(()), penalty_weight=1.0)
    return counter.get_total_flops()


def our_flop(config: Benchmark) -> int:
    """Operations of our step, a multiply-add as two."""
    with torch.device("meta"):
        shape, variant = tuple(config.patch_shape), config.variant
        critic, generator = (
            Critic(shape, variant.width, variant.critic_norm),
            Generator(shape, variant.width, variant.latent_size),
        )
        real_NCXYZ = torch.empty(config.batch_size, 2, *shape)
    engines = [BareEngine(n, m, 0.0, 0.9) for n, m in (("critic", critic), ("generator", generator))]
    draws = draws_of(config)
    with FlopCounterMode(display=False) as counter:
        critic_step(*engines, real_NCXYZ, draws, 0, variant)
        generator_step(*engines, draws, 0)
    return counter.get_total_flops()
