"""What is sampled beside the last weights: their moving average, and recalibrated BatchNorm statistics.

Running averages collected while the weights move describe no single network. Standing statistics (the term is BigGAN's)
are plain means over many latent batches of fixed weights. Every checkpoint holds both, so `generate` computes neither.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vesselgan.models.blocks import BatchNorm3d
from vesselgan.runtime.noise import NoiseSampler

STANDING_BATCHES = 100
STANDING_STREAM = 3


class MovingAverage:
    """Exponential moving average of a generator's weights, float32, updated once per generator step."""

    def __init__(self, generator: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().float().clone() for name, p in generator.named_parameters()}

    @torch.no_grad()
    def update(self, generator: nn.Module, step: int) -> None:
        """Add the weights after `step` steps; the decay warms up, so that the initial weights are soon forgotten."""
        decay = min(self.decay, step / (step + 10))
        for name, parameter in generator.named_parameters():
            self.weights[name].lerp_(parameter.detach().float(), 1 - decay)

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Continue from a checkpoint's `generator_ema`."""
        for name in self.weights:
            self.weights[name].copy_(weights[name])


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
        generator(noise.latents_NL(STANDING_STREAM, position).to(device, dtype))
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


def sampling_weights(
    generator: nn.Module, average: MovingAverage | None, noise: NoiseSampler, device: torch.device
) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds beside the engines: {file stem: tensors}."""
    extra = {"generator_standing": standing_statistics(generator, noise, device)}
    if average is not None:
        with swapped_weights(generator, average.weights):
            buffers = standing_statistics(generator, noise, device)
        extra["generator_ema"] = average.weights | buffers
    return extra
