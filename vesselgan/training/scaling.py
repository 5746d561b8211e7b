"""The predicted time of a step on any number of ranks: compute, update, traffic, loading and storage.

Every term is a count (training.cost, parameters, collective calls) over a measured rate (`vesselgan benchmark
target=machine`). Collectives are ring algorithms: a rank sends and receives 2 (R-1)/R of an all-reduce and (R-1)/R of
an all-gather, and each call waits log2(R) times. None of it overlaps computing, as with overlap_comm off; loading and
reading do, as long as the workers keep up.
"""

import math
from dataclasses import dataclass

from torch import nn

from vesselgan.config.training_schema import Machine
from vesselgan.models.normalisation import BatchNorm3d
from vesselgan.runtime.precision import torch_type
from vesselgan.training.cost import BUCKET, StepSetup, meta_networks

MIB, GIB = 2**20, 2**30
DEEPSPEED_BUCKET = 500_000_000
"""Elements in one all-reduce without ZeRO, whatever the JSON says."""
PAIR_BYTES_PER_VOXEL = 1.6
"""Of a pair in a shard, uint16 image and uint8 label compressed (phantom with realistic noise)."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank exchanges with the others in a step."""

    gradient_bytes: int
    """All-reduced: the gradients of every network's updates."""
    weight_bytes: int
    """All-gathered by ZeRO 1 and 2: the weights that other ranks update."""
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
    """The largest term."""


def traffic(setup: StepSetup) -> Traffic:
    """Counted from the networks, the precision, the ZeRO stage and the buckets; nothing for one rank."""
    if setup.batch.ranks == 1:
        return Traffic(0, 0, 0)
    variant, is_partitioned = setup.variant, setup.is_partitioned
    networks = meta_networks(variant, setup.patch_shape)
    bucket = setup.zero.get("reduce_bucket_size", BUCKET) if is_partitioned else DEEPSPEED_BUCKET
    size = torch_type(variant.precision).itemsize
    gradients = weights = calls = 0
    for name, network in networks.items():
        updates = variant.n_critic if name == "critic" else 1
        numbers = num_trainable(network)
        gradients += updates * numbers * size
        weights += updates * numbers * size * is_partitioned
        # With ZeRO one more call gathers the weights and one sums the norm.
        calls += updates * (-(-numbers // bucket) + 2 * is_partitioned)
    # Across ranks BatchNorm gathers in every forward (also for a critic step's fakes) and reduces in the backward.
    norms = sum(isinstance(module, BatchNorm3d) for module in networks["generator"].modules())
    return Traffic(gradients, weights, calls + norms * (variant.n_critic + 2))


def num_trainable(network: nn.Module) -> int:
    """Parameters that the optimizer updates."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def step_time(machine: Machine, setup: StepSetup, *, flop: float, num_workers: int) -> StepTime:
    """The terms of a step by the rates of `machine`.

    flop: of one rank's step; num_workers: processes that read a rank's pairs, 0: the rank itself.
    """
    ranks, variant, exchanged = setup.batch.ranks, setup.variant, traffic(setup)
    counts = {name: num_trainable(network) for name, network in meta_networks(variant, setup.patch_shape).items()}
    # Where ZeRO gathers weights each rank updates its partition.
    num_updated = (variant.n_critic * counts.get("critic", 0) + counts["generator"]) / (
        ranks if exchanged.weight_bytes else 1
    )
    voxels = setup.batch.per_rank * variant.n_critic * math.prod(setup.patch_shape)
    is_alone = ranks == 1 or machine.ranks_per_node == 1
    tflop_per_s = machine.tflop_per_s if is_alone else machine.tflop_per_s_shared
    overhead_ms = machine.overhead_ms if is_alone else machine.overhead_ms_shared
    mparameters_per_s = machine.update_mparameters_per_s if is_alone else machine.update_mparameters_per_s_shared
    link_gib_per_s = machine.link_gib_per_s
    if ranks > machine.ranks_per_node and machine.network_gib_per_s is not None:
        link_gib_per_s = machine.network_gib_per_s
    ring = (ranks - 1) / ranks
    wire_s = ring * (2 * exchanged.gradient_bytes + exchanged.weight_bytes) / (GIB * link_gib_per_s)
    seconds = {
        "compute": overhead_ms / 1e3 + flop / (1e12 * tflop_per_s),
        "update": num_updated / (1e6 * mparameters_per_s),
        "traffic": wire_s + exchanged.calls * machine.call_ms / 1e3 * math.log2(ranks),
        "load": voxels / (1e6 * machine.load_mvoxels_per_s * max(1, num_workers)),
        "storage": ranks * voxels * PAIR_BYTES_PER_VOXEL / (MIB * machine.storage_mib_per_s),
    }
    busy_s = seconds["compute"] + seconds["update"] + seconds["traffic"]
    hidden = (seconds["load"], seconds["storage"])
    step_s = max(busy_s, *hidden) if num_workers else busy_s + max(hidden)
    slowest = max(seconds, key=seconds.__getitem__)
    return StepTime(**{f"{name}_ms": 1e3 * s for name, s in seconds.items()}, step_ms=1e3 * step_s, slowest=slowest)
