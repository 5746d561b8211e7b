"""The summary of a GAN's run: its first log lines, its facts at the end, and advice when memory runs out."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vesselgan.config.compose import config_hash
from vesselgan.config.schema import TrainGan
from vesselgan.core.errors import ResourceError
from vesselgan.formats.run_dir import EVENTS, LOG
from vesselgan.runtime.device_memory import (
    is_out_of_memory,
    limit_bytes,
    peak_bytes,
    reserved_bytes,
)
from vesselgan.runtime.distributed import World, maximum_over_ranks
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.provenance import device_name
from vesselgan.trainer.logger import RunLog, Setting
from vesselgan.training.cost import BatchFit, StepCost, largest_fitting_batch, step_cost

GIB = 2**30
HPARAMS_METRICS = ["loss/critic", "loss/generator", "loss/wasserstein", "loss/gradient_penalty"]
HPARAMS_METRICS += ["time/step_ms", "memory/peak_gib"]
"""Scalars beside the settings on TensorBoard's HParams page."""


@dataclasses.dataclass(frozen=True)
class StepEstimate:
    """The predicted cost of a step of this run on this device."""

    config: TrainGan
    patch_shape: tuple[int, int, int]
    settings: dict[str, dict[str, Any]]
    """The resolved DeepSpeed dict of each network."""
    world: World

    def cost(self) -> StepCost:
        return step_cost(
            self.config.variant,
            self.patch_shape,
            self.settings,
            batch_per_rank=self._batch_per_rank,
            ranks=self.world.size,
            device=self.world.device.type,
            has_average=self.config.train.ema_decay is not None,
        )

    def remedy(self) -> str:
        """The settings with which a step fits, as `plan` would suggest them."""
        fit = self._largest_fitting_batch()
        if fit is None:
            return "no smaller batch fits: take ZeRO stage 1 or 2 on more ranks, half precision or a smaller variant"
        settings = f"set train.batch_per_gpu={fit.batch_per_gpu}"
        if fit.batch_per_rank < self._batch_per_rank:
            ranks = -(-self.config.train.batch_size // fit.batch_per_rank)
            settings += f" on {ranks} ranks, or train.batch_size={fit.batch_per_rank * self.world.size} on these"
        return f"{settings}: predicted to take up to {gib(fit.cost.peak_bytes)} per rank"

    def _largest_fitting_batch(self) -> BatchFit | None:
        return largest_fitting_batch(
            self.config.variant,
            self.patch_shape,
            self.settings,
            batch_per_rank=self._batch_per_rank,
            ranks=self.world.size,
            device=self.world.device.type,
            has_average=self.config.train.ema_decay is not None,
            # Where a step was predicted to fit and did not, only something smaller is a remedy.
            limit_bytes=min(limit_bytes(self.world.device), self.cost().peak_bytes - 1),
        )

    @property
    def _batch_per_rank(self) -> int:
        return self.config.train.batch_size // self.world.size


def log_run_summary(
    log: RunLog, run_dir: Path, estimate: StepEstimate, engines: dict[str, Engine], lines: list[str]
) -> None:
    """Log the run directory, variant, device and predicted memory, `lines`, and the settings for TensorBoard."""
    config, world = estimate.config, estimate.world
    log.line(f"run directory: {run_dir}")
    log.line(f"log: {run_dir / LOG}; curves and images: tensorboard --logdir {run_dir / EVENTS}")
    counts = {name: count_parameters(engine.module) for name, engine in engines.items()}
    log.line(
        f"{config.variant.name} in {config.variant.precision}, configuration {config_hash(config)}; "
        f"parameters: generator {counts['generator']:,}, critic {counts['critic']:,}"
    )
    if log.is_main:
        cost, limit = estimate.cost(), limit_bytes(world.device)
        basis = "tensors" if world.device.type == "cuda" else "beside the program itself"
        log.line(
            f"device: {world.size} x {world.device.type} ({device_name(world.device)}); a step is predicted to take up "
            f"to {gib(cost.peak_bytes)} per rank ({basis}), {gib(cost.standing_bytes)} between steps; there are "
            f"{gib(limit)}"
        )
        if cost.peak_bytes > limit:
            log.line(f"warning: that may be too much; {estimate.remedy()}")
    for line in lines:
        log.line(line)
    log.hparams(flatten_settings(config), metrics=HPARAMS_METRICS)


def flatten_settings(config: TrainGan) -> dict[str, Setting | None]:
    """The settings that define the run, by dotted name; lists as text."""
    settings: dict[str, Setting | None] = {}
    for group in ("variant", "data", "train"):
        for key, value in dataclasses.asdict(getattr(config, group)).items():
            is_plain = value is None or isinstance(value, Setting)
            settings[f"{group}.{key}"] = value if is_plain else str(value)
    return settings


def count_parameters(network: torch.nn.Module) -> int:
    """Parameters as the paper's Table 2 counts them: frozen biases included."""
    return sum(parameter.numel() for parameter in network.parameters())


def run_facts(estimate: StepEstimate, engines: dict[str, Engine], *, steps: int, seconds: float) -> dict[str, Any]:
    """For the paper's Table 2: parameters, memory, hours, device. A collective call.

    peak_gib_per_rank: tensors on a GPU, the process on a CPU; reserved_gib_per_rank: what the allocator reserved.
    """
    world = estimate.world
    return {
        "patch_shape": list(estimate.patch_shape),
        "batch_size": estimate.config.train.batch_size,
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
def explaining_out_of_memory(estimate: StepEstimate) -> Iterator[None]:
    """Raises ResourceError with the peak, the variant and the settings that fit, in place of an allocator's error.

    The step is not tried again: it would need as much.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        device, config = estimate.world.device, estimate.config
        raise ResourceError(
            f"out of memory on {device.type} ({device_name(device)}, {gib(limit_bytes(device))}) with "
            f"variant={config.variant.name}, patches of {list(estimate.patch_shape)}, "
            f"train.batch_size={config.train.batch_size} on {estimate.world.size} ranks: peak "
            f"{gib(peak_bytes(device))} so far. To make it fit: {estimate.remedy()}. The run resumes from its last "
            "checkpoint where allow_config_change=[...] names what was changed "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
