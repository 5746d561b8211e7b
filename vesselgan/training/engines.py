"""The GAN's two networks in their engines, and the DeepSpeed settings of each."""

from typing import Any

from vesselgan.config.deepspeed import resolve
from vesselgan.config.schema import Plan, TrainGan
from vesselgan.core.errors import UsageError
from vesselgan.models.blocks import init_weights
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.privacy.step import PrivateRun
from vesselgan.runtime.distributed import World
from vesselgan.runtime.engine import build

Engines = dict[str, Any]
"""`critic` and `generator`: an Engine each; the critic of a private run is a PrivateEngine."""


def engine_settings(config: TrainGan | Plan, raw: dict[str, Any], ranks: int) -> dict[str, dict[str, Any]]:
    """The DeepSpeed JSON resolved for each network; raises UsageError where the batch cannot be cut.

    Only the critic takes micro-batches: the generator's BatchNorm needs the whole batch.
    """
    train_config = config.train
    batch_size, batch_per_gpu = train_config.batch_size, train_config.batch_per_gpu
    critic = resolve(raw, batch_size=batch_size, batch_per_gpu=batch_per_gpu, world_size=ranks)
    if config.variant.penalty_reduction == "batch" and critic["train_micro_batch_size_per_gpu"] != batch_size:
        raise UsageError(
            f"variant.penalty_reduction=batch takes one norm over the whole batch, so it cannot be cut: not over "
            f"{ranks} ranks, not by train.batch_per_gpu={batch_per_gpu}; take one rank and null, or "
            "penalty_reduction=sample"
        )
    return {
        "critic": critic,
        "generator": resolve(raw, batch_size=batch_size, batch_per_gpu=None, world_size=ranks),
    }


def build_engines(
    config: TrainGan,
    patch_shape: tuple[int, int, int],
    settings: dict[str, dict[str, Any]],
    world: World,
    program: str,
    private: PrivateRun | None,
) -> Engines:
    variant, seed = config.variant, config.train.seed
    critic = Critic(patch_shape, variant.width, variant.critic_norm)
    generator = Generator(patch_shape, variant.width, variant.latent_size, variant.generator_norm)
    init_weights(critic, seed)
    init_weights(generator, seed + 1)
    networks = {
        "critic": (critic, variant.learning_rate_critic),
        "generator": (generator, variant.learning_rate_generator),
    }
    engines: Engines = {}
    if private is not None:
        engines["critic"] = private.engine(critic, variant, world)
    for name, (network, learning_rate) in networks.items():
        if name not in engines:
            engines[name] = build(
                name,
                network,
                learning_rate=learning_rate,
                betas=variant.betas,
                settings=settings[name],
                world=world,
                program=program,
                key="variant.precision",
            )
    return engines
