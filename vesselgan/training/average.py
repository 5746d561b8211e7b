"""What is sampled beside the last weights: their moving average, and recalibrated BatchNorm statistics.

Running averages collected while the weights move describe no single network. Standing statistics (the term is BigGAN's)
are plain means over many latent batches of fixed weights. Every checkpoint holds both, so `generate` computes neither.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vesselgan.core.errors import CheckpointError
from vesselgan.formats.checkpoint_folder import CHECKPOINTS, EMA, STANDING, read_manifest, weights_file
from vesselgan.models.blocks import BatchNorm3d
from vesselgan.runtime import checkpoint
from vesselgan.runtime.noise import NoiseSampler, Stream
from vesselgan.trainer.checkpointer import CheckpointPart

STANDING_BATCHES = 100


class MovingAverage:
    """Exponential moving average of a generator's weights, float32, updated once per generator step."""

    def __init__(self, generator: nn.Module, decay: float) -> None:
        self.generator, self.decay = generator, decay
        self.weights = {name: p.detach().float().clone() for name, p in generator.named_parameters()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Add the weights after `step` steps; the decay warms up, so that the initial weights are soon forgotten."""
        decay = min(self.decay, step / (step + 10))
        for name, parameter in self.generator.named_parameters():
            self.weights[name].lerp_(parameter.detach().float(), 1 - decay)

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Continue from a checkpoint's `generator_ema`."""
        for name in self.weights:
            self.weights[name].copy_(weights[name])


def resumed_average(generator: nn.Module, decay: float | None, run_dir: Path, step: int) -> MovingAverage | None:
    """The moving average as the checkpoint of `step` has it; None without a decay. CheckpointError if it has none."""
    if decay is None:
        return None
    average = MovingAverage(generator, decay)
    if step:
        name = checkpoint.name_of(step)
        if weights_file(EMA) not in read_manifest(run_dir / CHECKPOINTS / name):
            raise CheckpointError(
                f"{run_dir}: variant.ema_decay={decay}, and {name} holds no moving average, which cannot start midway: "
                "resume with null, or begin a new run"
            )
        average.restore(checkpoint.read_weights(run_dir, EMA, name)[0])
    return average


@torch.no_grad()
def standing_statistics(generator: nn.Module, noise: NoiseSampler, device: torch.device) -> dict[str, Tensor]:
    """BatchNorm buffers as plain means over STANDING_BATCHES latent batches; the generator's state is restored.

    A collective call: every rank takes its slice of each batch.
    """
    norms = {name: module for name, module in generator.named_modules() if isinstance(module, BatchNorm3d)}
    if not norms:
        return {name: buffer.clone() for name, buffer in generator.named_buffers()}
    was_training = generator.training
    running = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    generator.train()
    for norm in norms.values():
        norm.get_buffer("num_batches").zero_()
        norm.momentum = 0.0
    dtype = next(generator.parameters()).dtype
    for position in range(STANDING_BATCHES):
        generator(noise.latents_NL(Stream.STANDING_LATENTS, position).to(device, dtype))
    standing = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    for name, buffer in generator.named_buffers():
        buffer.copy_(running[name])
    for name, norm in norms.items():
        norm.momentum = momenta[name]
    generator.train(was_training)
    return standing


@contextmanager
def swapped_weights(generator: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """The generator with other weights inside the block; its own come back to the bit."""
    own = {name: parameter.detach().clone() for name, parameter in generator.named_parameters()}
    _copy_weights(generator, weights)
    try:
        yield
    finally:
        _copy_weights(generator, own)


@torch.no_grad()
def _copy_weights(generator: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in generator.named_parameters():
        parameter.copy_(weights[name])


@dataclass(frozen=True)
class SamplingWeights(CheckpointPart):
    """The tensors of a checkpoint that `generate` can sample from, beside the last weights."""

    generator: nn.Module
    average: MovingAverage | None
    noise: NoiseSampler
    device: torch.device

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        extra = {STANDING: standing_statistics(self.generator, self.noise, self.device)}
        if self.average is not None:
            with swapped_weights(self.generator, self.average.weights):
                buffers = standing_statistics(self.generator, self.noise, self.device)
            extra[EMA] = self.average.weights | buffers
        return extra

    def expected_tensors(self) -> Iterable[Tensor]:
        yield from self.generator.buffers()
        if self.average is not None:
            yield from self.generator.state_dict().values()
