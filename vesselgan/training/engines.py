"""The GAN's two networks in their engines, and the DeepSpeed settings of each."""

from typing import Any

from torch import nn

from vesselgan.config.schema import Plan, TrainGan
from vesselgan.core.errors import UsageError
from vesselgan.models.blocks import init_weights
from vesselgan.privacy.step import PrivateRun
from vesselgan.runtime.distributed import World
from vesselgan.runtime.engine import Engine, build
from vesselgan.trainer.batch_plan import BatchPlan
from vesselgan.training.networks import build_networks

Engines = dict[str, Any]
"""`critic` and `generator`: an Engine each; the critic of a private run is a PrivateEngine."""


def batch_plan(config: TrainGan | Plan, ranks: int) -> BatchPlan:
    """The critic's; the generator, whose BatchNorm needs the whole batch, takes `batch_plan(...).whole()`.

    Raises UsageError where the batch cannot be divided.
    """
    train = config.train
    batch = BatchPlan.of(train.batch_size, train.batch_per_gpu, ranks=ranks)
    if config.variant.penalty_reduction == "batch" and batch.micro != batch.total:
        raise UsageError(
            f"variant.penalty_reduction=batch takes one norm over the whole batch, so it cannot be cut: not over "
            f"{ranks} ranks, not by train.batch_per_gpu={train.batch_per_gpu}; take one rank and null, or "
            "penalty_reduction=sample"
        )
    return batch


def engine_settings(batch: BatchPlan, deepspeed_json: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The DeepSpeed dict of each network; only the critic takes micro-batches."""
    return {"critic": batch.resolve(deepspeed_json), "generator": batch.whole().resolve(deepspeed_json)}


def build_engines(
    config: TrainGan,
    patch_shape: tuple[int, int, int],
    settings: dict[str, dict[str, Any]],
    world: World,
    private: PrivateRun | None,
) -> Engines:
    """Both networks, initialised from the seed, on this rank's device."""
    variant, seed = config.variant, config.train.seed
    critic, generator = build_networks(variant, patch_shape)
    init_weights(critic, seed)
    init_weights(generator, seed + 1)

    def engine(name: str, network: nn.Module, learning_rate: float) -> Engine:
        betas = variant.betas
        return build(name, network, learning_rate=learning_rate, betas=betas, settings=settings[name], world=world)

    rate = variant.learning_rate_critic
    return {
        "critic": engine("critic", critic, rate) if private is None else private.engine(critic, variant, world),
        "generator": engine("generator", generator, variant.learning_rate_generator),
    }
