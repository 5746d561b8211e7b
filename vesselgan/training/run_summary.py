"""What a GAN's run says of itself: before the first step, at its end, and when its memory is not enough."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vesselgan.config.compose import config_hash
from vesselgan.config.schema import TrainGan
from vesselgan.core.errors import ResourceError
from vesselgan.runtime.device_memory import (
    is_out_of_memory,
    limit_bytes,
    peak_bytes,
    reserved_bytes,
)
from vesselgan.runtime.distributed import World, maximum_over_ranks
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.provenance import device_name
from vesselgan.trainer.logger import EVENTS, LOG, RunLog, Setting
from vesselgan.training.cost import Cost, fitting, step_cost

GIB = 2**30
WATCHED = ("loss/critic", "loss/generator", "loss/wasserstein", "loss/gradient_penalty", "step_ms", "peak_memory_gib")
"""Scalars beside the settings on TensorBoard's HParams page."""


@dataclasses.dataclass(frozen=True)
class StepEstimate:
    """What a step of this run is predicted to take on this device."""

    config: TrainGan
    patch_shape: tuple[int, int, int]
    settings: dict[str, dict[str, Any]]
    """The resolved DeepSpeed dict of each player."""
    world: World

    def cost(self) -> Cost:
        return step_cost(self.config.variant, self.patch_shape, self.settings, **self._rank())

    def remedy(self) -> str:
        """What to change so that a step fits, as `plan` would suggest."""
        train, rank = self.config.train, self._rank()
        # What was predicted to fit and did not: then only something smaller will do.
        limit = min(limit_bytes(self.world.device), self.cost().peak_bytes - 1)
        found = fitting(self.config.variant, self.patch_shape, self.settings, **rank, limit_bytes=limit)
        if found is None:
            return "no smaller batch fits: take ZeRO stage 1 or 2 on more ranks, half precision or a smaller variant"
        words = f"set train.batch_per_gpu={found.batch_per_gpu}"
        if found.batch_per_rank < rank["batch_per_rank"]:
            ranks = -(-train.batch_size // found.batch_per_rank)
            words += f" on {ranks} ranks, or train.batch_size={found.batch_per_rank * self.world.size} on these"
        return f"{words}: predicted to take up to {gib(found.cost.peak_bytes)} per rank"

    def _rank(self) -> dict[str, Any]:
        return {
            "batch_per_rank": self.config.train.batch_size // self.world.size,
            "ranks": self.world.size,
            "device": self.world.device.type,
            "has_average": self.config.train.ema_decay is not None,
        }


def log_run_summary(
    log: RunLog, run_dir: Path, rehearsal: StepEstimate, engines: dict[str, Engine], more: list[str]
) -> None:
    """Where, what, on which device, with how much memory, and `more`."""
    config, world = rehearsal.config, rehearsal.world
    log.line(f"run directory: {run_dir}")
    log.line(f"log: {run_dir / LOG}; curves and pictures: tensorboard --logdir {run_dir / EVENTS}")
    counts = {name: count_parameters(engine.module) for name, engine in engines.items()}
    log.line(
        f"{config.variant.name} in {config.variant.precision}, configuration {config_hash(config)}; "
        f"parameters: generator {counts['generator']:,}, critic {counts['critic']:,}"
    )
    where = f"{world.size} x {world.device.type} ({device_name(world.device)})"
    if log.is_main:
        cost, limit = rehearsal.cost(), limit_bytes(world.device)
        beside = "tensors" if world.device.type == "cuda" else "beside the program itself"
        log.line(
            f"device: {where}; a step is predicted to take up to {gib(cost.peak_bytes)} per rank ({beside}), "
            f"{gib(cost.standing_bytes)} between steps; there are {gib(limit)}"
        )
        if cost.peak_bytes > limit:
            log.line(f"warning: that may be too much; {rehearsal.remedy()}")
    for line in more:
        log.line(line)
    log.settings(flat(config), watched=list(WATCHED))


def flat(config: TrainGan) -> dict[str, Setting | None]:
    """The settings that make the run what it is, by dotted name; lists as text."""
    found: dict[str, Setting | None] = {}
    for group in ("variant", "data", "train"):
        for key, value in dataclasses.asdict(getattr(config, group)).items():
            is_plain = value is None or isinstance(value, bool | int | float | str)
            found[f"{group}.{key}"] = value if is_plain else str(value)
    return found


def count_parameters(module: torch.nn.Module) -> int:
    """Parameters as the paper's Table 2 counts them: frozen biases included."""
    return sum(parameter.numel() for parameter in module.parameters())


def facts(rehearsal: StepEstimate, engines: dict[str, Engine], *, steps: int, seconds: float) -> dict[str, Any]:
    """For the paper's Table 2: parameters, memory, hours, on what. A collective call.

    peak_gib_per_rank: tensors on a GPU, the process on a CPU; reserved_gib_per_rank: what the device must have.
    """
    world = rehearsal.world
    return {
        "patch_shape": list(rehearsal.patch_shape),
        "batch_size": rehearsal.config.train.batch_size,
        "steps": steps,
        "hours": seconds / 3600,
        "peak_gib_per_rank": maximum_over_ranks(peak_bytes(world.device), world) / GIB,
        "reserved_gib_per_rank": maximum_over_ranks(reserved_bytes(world.device), world) / GIB,
        "ranks": world.size,
        "device": world.device.type,
        "device_name": device_name(world.device),
        "parameters": {name: count_parameters(engine.module) for name, engine in engines.items()},
    }


@contextmanager
def explaining_out_of_memory(rehearsal: StepEstimate) -> Iterator[None]:
    """ResourceError with the peak, the variant and what to set instead, in place of an allocator's refusal.

    Never tried again: the next step would need as much.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        device, variant = rehearsal.world.device, rehearsal.config.variant
        raise ResourceError(
            f"out of memory on {device.type} ({device_name(device)}, {gib(limit_bytes(device))}) with "
            f"variant={variant.name}, patches of {list(rehearsal.patch_shape)}, "
            f"train.batch_size={rehearsal.config.train.batch_size} on {rehearsal.world.size} ranks: peak "
            f"{gib(peak_bytes(device))} so far. To make it fit: {rehearsal.remedy()}. The run goes on from its last "
            "checkpoint where allow_config_change=[...] names what was changed "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
