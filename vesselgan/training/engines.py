"""A run's networks in their engines, and the DeepSpeed settings of each."""

from typing import Any

from torch import nn

from vesselgan.config.flow import muon_learning_rate
from vesselgan.config.schema import Plan, TrainGan, Variant
from vesselgan.core.errors import UsageError
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.variants import build_networks, init_networks
from vesselgan.privacy.run import PrivateRun
from vesselgan.runtime.distributed import World
from vesselgan.runtime.engine import build
from vesselgan.trainer.batch_plan import BatchPlan

Engines = dict[str, Any]
"""`critic` and `generator`, of a flow `generator` alone: an Engine each; the one that sees patches in a private
run is a PrivateEngine."""


def batch_plan(config: TrainGan | Plan, ranks: int) -> BatchPlan:
    """The critic's, or a flow's; a GAN's generator, whose BatchNorm needs the whole batch, takes `.whole()` of it.

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


def engine_settings(variant: Variant, batch: BatchPlan, deepspeed_json: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The DeepSpeed dict of each network; a GAN's generator takes no micro-batches. UsageError for Muon with ZeRO."""
    if muon_learning_rate(variant) is not None and deepspeed_json.get("zero_optimization", {}).get("stage", 0):
        raise UsageError(
            f"variant.muon_learning_rate={variant.muon_learning_rate} needs whole matrices, and ZeRO cuts them: set "
            "zero_optimization.stage to 0 in the DeepSpeed JSON, or variant.muon_learning_rate=null"
        )
    if variant.flow is not None:
        return {"generator": batch.resolve(deepspeed_json)}
    return {"critic": batch.resolve(deepspeed_json), "generator": batch.whole().resolve(deepspeed_json)}


def build_engines(
    config: TrainGan,
    patch_shape: tuple[int, int, int],
    settings: dict[str, dict[str, Any]],
    world: World,
    private: PrivateRun | None,
) -> Engines:
    """Every network, initialised from the seed, on this rank's device."""
    variant = config.variant
    rates = {"critic": variant.learning_rate_critic, "generator": variant.learning_rate_generator}
    networks = build_networks(variant, patch_shape)
    init_networks(networks, config.train.seed)

    def engine(name: str, network: nn.Module) -> Any:
        if private is not None and name == private.network:
            return private.engine(network, variant, world)
        return build(
            name,
            network,
            learning_rate=rates[name],
            betas=variant.betas,
            settings=settings[name],
            world=world,
            matrices=network.matrices() if isinstance(network, FlowGenerator) else (),
            muon_learning_rate=muon_learning_rate(variant),
        )

    return {name: engine(name, network) for name, network in networks.items()}
