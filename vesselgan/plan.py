"""What a variant costs, before anything is booked: parameters, checkpoint size, batch per rank. Allocates nothing."""

import json
from typing import Any

import torch

from vesselgan.config.compose import Command
from vesselgan.config.schema import Plan
from vesselgan.errors import UsageError
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator

BYTES_FLOAT32 = 4
MOMENTS_OF_ADAM = 2


def plan(command: Command) -> None:
    """Print what the configuration costs: a table, or with --json one object per number of ranks in `ranks`."""
    facts = costs(command.config)
    if command.wants_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if name != "ranks":
            print(f"{name:<24} {value:,}" if isinstance(value, int) else f"{name:<24} {value}")
    for row in facts["ranks"]:
        print(f"{row['ranks']:>4} ranks: {row['batch_per_rank']} patches each per step")


def costs(config: Plan) -> dict[str, Any]:
    """parameters_generator, parameters_critic (trainable, as Table 2 counts), checkpoint_gib (one published checkpoint:
    float32 weights, buffers, two Adam moments and the moving average if there is one, bytes / 2^30), ranks."""
    variant, shape = config.variant, tuple(config.patch_shape)
    with torch.device("meta"):
        networks = {
            "generator": Generator(shape, variant.width, variant.latent_size),
            "critic": Critic(shape, variant.width, variant.critic_norm),
        }
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    stepped = sum(p.numel() for network in networks.values() for p in network.parameters() if p.requires_grad)
    stored = sum(value.numel() for network in networks.values() for value in network.state_dict().values())
    averaged = 0 if config.train.ema_decay is None else counts["generator"]
    return {
        "variant": variant.name,
        "width": variant.width,
        "precision": variant.precision,
        "patch_shape": list(shape),
        "parameters_generator": counts["generator"],
        "parameters_critic": counts["critic"],
        "parameters": sum(counts.values()),
        "checkpoint_gib": BYTES_FLOAT32 * (stored + MOMENTS_OF_ADAM * stepped + averaged) / 2**30,
        "batch_size": config.train.batch_size,
        "ranks": [_share(config, ranks) for ranks in config.ranks],
    }


def _share(config: Plan, ranks: int) -> dict[str, int]:
    batch = config.train.batch_size
    if batch % ranks:
        raise UsageError(f"ranks={ranks}: train.batch_size={batch} does not divide over them; choose a multiple")
    return {"ranks": ranks, "batch_per_rank": batch // ranks}
