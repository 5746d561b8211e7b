"""The summary of a GAN's run: its first log lines, its facts at the end, and advice when memory runs out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vesselgan.anatomy.head import check_training_volumes
from vesselgan.config.compose import config_hash
from vesselgan.config.schema import TrainGan
from vesselgan.core.errors import ResourceError, UsageError
from vesselgan.core.memory import format_bytes
from vesselgan.models.flow import FlowGenerator
from vesselgan.runtime.device_memory import (
    is_out_of_memory,
    limit_bytes,
    peak_bytes,
    reserved_bytes,
)
from vesselgan.runtime.distributed import maximum_over_ranks
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.provenance import device_name
from vesselgan.trainer.batch_plan import BatchPlan
from vesselgan.trainer.run_log import EVENTS, LOG
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session
from vesselgan.training.cost import StepCost, StepSetup, largest_fitting_batch, step_cost

GIB = 2**30
HPARAMS_METRICS = ["loss/critic", "loss/generator", "loss/wasserstein", "loss/gradient_penalty"]
HPARAMS_METRICS += ["time/step_ms", "memory/peak_gib"]
"""Scalars beside the settings on TensorBoard's HParams page."""


class StepEstimate:
    """The predicted cost of a step of this run on this device."""

    def __init__(self, config: TrainGan, patch_shape: tuple[int, int, int], batch: BatchPlan, session: Session) -> None:
        self.config, self.world = config, session.world
        has_average = config.variant.ema_decay is not None
        self.setup = StepSetup(
            config.variant, patch_shape, batch, session.deepspeed_json, self.world.device.type, has_average
        )

    def cost(self) -> StepCost:
        return step_cost(self.setup)

    def remedy(self) -> str:
        """The settings with which a step fits, as `plan` would suggest them."""
        # Where a step was predicted to fit and did not, only something smaller is a remedy.
        fit = largest_fitting_batch(self.setup, min(limit_bytes(self.world.device), self.cost().peak_bytes - 1))
        if fit is None:
            return "no smaller batch fits: take ZeRO stage 1 or 2 on more ranks, half precision or a smaller variant"
        settings, total = f"set train.batch_per_gpu={fit.batch.micro}", self.setup.batch.total
        if fit.batch.total < total:
            ranks = -(-total // fit.batch.per_rank)
            settings += f" on {ranks} ranks, or train.batch_size={fit.batch.total} on these"
        return f"{settings}: predicted to take up to {format_bytes(fit.cost.peak_bytes)} per rank"

    def lines(self) -> list[str]:
        """For the log: the device, and the memory of a step there."""
        cost, device = self.cost(), self.world.device
        limit, basis = limit_bytes(device), "tensors" if device.type == "cuda" else "beside the program itself"
        line = (
            f"device: {self.world.size} x {device.type} ({device_name(device)}); a step is predicted to take up "
            f"to {format_bytes(cost.peak_bytes)} per rank ({basis}), {format_bytes(cost.standing_bytes)} between "
            f"steps; there are {format_bytes(limit)}"
        )
        if cost.peak_bytes <= limit:
            return [line]
        return [line, f"warning: that may be too much; {self.remedy()}"]


def summary_lines(estimate: StepEstimate, engines: dict[str, Engine], schedule: Schedule, run_dir: Path) -> list[str]:
    """The run directory, variant, device and predicted memory, for the log; `estimate` is asked on rank 0 alone."""
    config = estimate.config
    counts = {name: count_parameters(engine.module) for name, engine in engines.items()}
    origin = f"resumed at step {schedule.start}" if schedule.start else "new run"
    return [
        f"run directory: {run_dir}",
        f"log: {run_dir / LOG}; curves and images: tensorboard --logdir {run_dir / EVENTS}",
        f"{config.variant.name} in {config.variant.precision}, configuration {config_hash(config)}; "
        f"parameters: {', '.join(f'{name} {count:,}' for name, count in sorted(counts.items(), reverse=True))}",
        *(estimate.lines() if estimate.world.is_main else []),
        f"{origin}; {schedule.stop} steps in all",
    ]


def training_volume_lines(generator: torch.nn.Module, spacing_mm: Sequence[float]) -> list[str]:
    """For the log: a warning where the labels of samples come from heads and the training volumes are too small."""
    if not isinstance(generator, FlowGenerator) or not generator.num_given:
        return []
    try:
        check_training_volumes(generator.volume_shape, spacing_mm, can_make_heads=generator.has_position)
    except UsageError as error:
        return [f"warning: {error}"]
    return []


def count_parameters(network: torch.nn.Module) -> int:
    """Parameters as the paper's Table 2 counts them: frozen biases included."""
    return sum(parameter.numel() for parameter in network.parameters())


def run_facts(estimate: StepEstimate, engines: dict[str, Engine], *, steps: int, seconds: float) -> dict[str, Any]:
    """For the paper's Table 2: parameters, memory, hours, device. A collective call.

    peak_gib_per_rank: tensors on a GPU, the process on a CPU; reserved_gib_per_rank: what the allocator reserved.
    """
    world = estimate.world
    return {
        "patch_shape": list(estimate.setup.patch_shape),
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
            f"out of memory on {device.type} ({device_name(device)}, {format_bytes(limit_bytes(device))}) with "
            f"variant={config.variant.name}, patches of {list(estimate.setup.patch_shape)}, "
            f"train.batch_size={config.train.batch_size} on {estimate.world.size} ranks: peak "
            f"{format_bytes(peak_bytes(device))} so far. To make it fit: {estimate.remedy()}. The run resumes from its "
            "last checkpoint where allow_config_change=[...] names what was changed "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
