"""What is sampled beside the last weights: their moving average, and BatchNorm statistics re-estimated at rest.

Running averages collected while the weights move describe no single network; standing ones are plain means over many
latent batches of the weights as they are. Both are saved with every checkpoint, so `generate` computes nothing anew.
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
        """Take in the weights after `step` steps; the first steps weigh more, so that the start is soon forgotten."""
        keep = min(self.decay, step / (step + 10))
        for name, parameter in generator.named_parameters():
            self.weights[name].lerp_(parameter.detach().float(), 1 - keep)

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Continue from a checkpoint's `generator_ema`."""
        for name in self.weights:
            self.weights[name].copy_(weights[name])


@torch.no_grad()
def standing_statistics(generator: nn.Module, draws: NoiseSampler, device: torch.device) -> dict[str, Tensor]:
    """BatchNorm buffers as plain means over STANDING_BATCHES latent batches; the generator is left as it was.

    A collective call: with several ranks every one takes its part of each batch.
    """
    norms = {name: part for name, part in generator.named_modules() if isinstance(part, BatchNorm3d)}
    if not norms:
        return {name: buffer.clone() for name, buffer in generator.named_buffers()}
    was_training = generator.training
    kept = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    generator.train()
    for norm in norms.values():
        norm.num_batches.zero_()
        norm.momentum = 0.0
    dtype = next(generator.parameters()).dtype
    for position in range(STANDING_BATCHES):
        generator(draws.latents_NL(STANDING_STREAM, position).to(device, dtype))
    standing = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    for name, buffer in generator.named_buffers():
        buffer.copy_(kept[name])
    for name, norm in norms.items():
        norm.momentum = momenta[name]
    generator.train(was_training)
    return standing


@contextmanager
def holding(generator: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """The generator with other weights for a while; its own come back to the bit."""
    own = {name: parameter.detach().clone() for name, parameter in generator.named_parameters()}
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            parameter.copy_(weights[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in generator.named_parameters():
                parameter.copy_(own[name])


def to_sample(generator: nn.Module, average: MovingAverage | None, draws: NoiseSampler, device: torch.device) -> dict:
    """What a checkpoint holds beside the engines: {file stem: tensors}."""
    extra = {"generator_standing": standing_statistics(generator, draws, device)}
    if average is not None:
        with holding(generator, average.weights):
            buffers = standing_statistics(generator, draws, device)
        extra["generator_ema"] = average.weights | buffers
    return extra
