"""How long a step takes on more ranks than one has at hand: what it computes, updates, sends, loads and reads.

Every term is something counted (training.cost, the parameters, the collective calls of a step) over a rate that was
measured (`launch/benchmark.py target=machine`). Collective calls are taken as a ring's: a rank sends and receives
2 (R-1)/R of an all-reduce and (R-1)/R of an all-gather, and each call waits log2(R) times. Nothing of that is hidden
behind computing, as with overlap_comm off; loading and reading are, by workers, as long as these keep up.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vesselgan.config.deepspeed import precision_of
from vesselgan.config.training_schema import Machine, Variant
from vesselgan.models.normalisation import BatchNorm3d
from vesselgan.training.cost import BUCKET, TYPES, players_of

MIB, GIB = 2**20, 2**30
DEEPSPEED_BUCKET = 500_000_000
"""Numbers in one all-reduce without ZeRO, where DeepSpeed does not ask its JSON."""
PAIR_BYTES_PER_VOXEL = 1.6
"""Of a pair in a shard, uint16 image and uint8 label packed (phantom with realistic noise)."""


@dataclass(frozen=True)
class Traffic:
    """What one rank exchanges with the others in a step."""

    gradient_bytes: int
    """All-reduced: every player's gradients, as often as it steps."""
    weight_bytes: int
    """All-gathered by ZeRO 1 and 2: the weights that other ranks step."""
    linear_bytes: int
    """Part of gradient_bytes: the generator's first layer, the largest of all."""
    linear_factor_bytes: int
    """What would do instead: the two factors of that layer's gradient, of all ranks."""
    calls: int
    """Collective calls, BatchNorm's included."""


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of one step on each rank."""

    compute_ms: float
    update_ms: float
    traffic_ms: float
    load_ms: float
    storage_ms: float
    step_ms: float
    slowest: str
    """The largest term: what to mend first."""


def traffic(
    variant: Variant,
    patch_shape: tuple[int, int, int],
    settings: Mapping[str, dict[str, Any]],
    *,
    batch_per_rank: int,
    ranks: int,
) -> Traffic:
    """Counted from the networks, the precision, the ZeRO stage and the buckets; nothing for one rank."""
    if ranks == 1:
        return Traffic(0, 0, 0, 0, 0)
    players = players_of(variant, patch_shape)
    gradients = weights = calls = 0
    for name, network in players.items():
        updates = variant.n_critic if name == "critic" else 1
        numbers = num_trainable(network)
        zero = settings[name].get("zero_optimization", {})
        is_partitioned = zero.get("stage", 0) > 0
        bucket = zero.get("reduce_bucket_size", BUCKET) if is_partitioned else DEEPSPEED_BUCKET
        size = TYPES[precision_of(settings[name])].itemsize
        gradients += updates * numbers * size
        weights += updates * numbers * size * is_partitioned
        # With ZeRO one more call gathers the weights and one sums the norm.
        calls += updates * (-(-numbers // bucket) + 2 * is_partitioned)
    # Over ranks BatchNorm gathers in every forward (each critic step makes fakes, too) and reduces in the backward.
    norms = sum(isinstance(part, BatchNorm3d) for part in players["generator"].modules())
    linear = next(part.weight for part in players["generator"].modules() if isinstance(part, nn.Linear))
    size = TYPES[precision_of(settings["generator"])].itemsize
    return Traffic(
        gradient_bytes=gradients,
        weight_bytes=weights,
        linear_bytes=linear.numel() * size,
        linear_factor_bytes=ranks * batch_per_rank * sum(linear.shape) * size,
        calls=calls + norms * (variant.n_critic + 2),
    )


def num_trainable(network: nn.Module) -> int:
    """Parameters that its optimizer steps."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def step_time(
    machine: Machine,
    sent: Traffic,
    *,
    ranks: int,
    flop: float,
    num_updated: float,
    num_pairs: int,
    voxels: int,
    num_workers: int,
) -> StepTime:
    """The terms of a step on one of `ranks` like `machine`.

    flop: of this rank; num_updated: parameters that its optimizers step, per update; num_pairs: that it reads in a
    step; voxels: of one of them; num_workers: that read for it, 0: itself.
    """
    is_alone = ranks == 1 or machine.ranks_per_node == 1
    is_within = ranks <= machine.ranks_per_node or machine.network_gib_per_s is None
    tflop_per_s = machine.tflop_per_s if is_alone else machine.tflop_per_s_shared
    overhead_ms = machine.overhead_ms if is_alone else machine.overhead_ms_shared
    mparameters_per_s = machine.update_mparameters_per_s if is_alone else machine.update_mparameters_per_s_shared
    link_gib_per_s = machine.link_gib_per_s if is_within else machine.network_gib_per_s
    ring = (ranks - 1) / ranks
    wire_s = ring * (2 * sent.gradient_bytes + sent.weight_bytes) / (GIB * link_gib_per_s)
    seconds = {
        "compute": overhead_ms / 1e3 + flop / (1e12 * tflop_per_s),
        "update": num_updated / (1e6 * mparameters_per_s),
        "traffic": wire_s + sent.calls * machine.call_ms / 1e3 * math.log2(ranks),
        "load": num_pairs * voxels / (1e6 * machine.load_mvoxels_per_s * max(1, num_workers)),
        "storage": ranks * num_pairs * voxels * PAIR_BYTES_PER_VOXEL / (MIB * machine.storage_mib_per_s),
    }
    busy_s = seconds["compute"] + seconds["update"] + seconds["traffic"]
    hidden = (seconds["load"], seconds["storage"])
    step_s = max(busy_s, *hidden) if num_workers else busy_s + max(hidden)
    slowest = max(seconds, key=seconds.get)
    return StepTime(**{f"{name}_ms": 1e3 * s for name, s in seconds.items()}, step_ms=1e3 * step_s, slowest=slowest)
