"""How much a process grows by while it takes two steps of the GAN: VARIANT WIDTH SHAPE BATCH -> bytes, one line."""

import json
import resource
import sys

import torch

from vesselgan.config.compose import compose
from vesselgan.config.deepspeed import complete, read
from vesselgan.models.blocks import init_weights
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.runtime import distributed
from vesselgan.runtime.device_memory import peak_bytes
from vesselgan.runtime.engine import Engine, build
from vesselgan.runtime.noise import NoiseSampler
from vesselgan.trainer.batch_plan import BatchPlan
from vesselgan.training.gan import critic_step, generator_step

name, width, shape, batch = sys.argv[1], int(sys.argv[2]), tuple(json.loads(sys.argv[3])), int(sys.argv[4])
variant = compose("plan", [f"variant={name}", "variant.precision=fp32"]).variant
world = distributed.start("cpu")


def take_steps(width: int, shape: tuple[int, int, int], batch: int) -> None:
    settings = BatchPlan.of(batch, None, ranks=1).resolve(complete(*read(None, "fp32"), "fp32"))

    def engine(network: str, module: torch.nn.Module) -> Engine:
        init_weights(module, 0)
        rate, betas = variant.learning_rate_critic, variant.betas
        return build(network, module, learning_rate=rate, betas=betas, settings=settings, world=world)

    critic = engine("critic", Critic(shape, width, variant.critic_norm))
    generator = engine("generator", Generator(shape, width, variant.latent_size))
    draws = NoiseSampler(0, batch, variant.latent_size)
    for step in range(2):
        critic_step(critic, generator, torch.rand(batch, 2, *shape), draws, step, variant)
        generator_step(critic, generator, draws, step)


# What torch and DeepSpeed load at their first step is not the step's.
take_steps(8, (32, 16, 16), 2)
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize()
take_steps(width, shape, batch)
print(peak_bytes(world.device) - before)
