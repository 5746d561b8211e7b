"""The training of a flow: one network, one batch and one update in every step.

As for the GAN, everything random is a function of (seed, step): noise and times of a patch do not depend on the number
of ranks. Not the paper's: what one would take today.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.profiler import record_function

from vesselgan.losses.flow_matching import denoising_errors, point_on_path
from vesselgan.models.flow import FlowGenerator, shifted_times, with_signed_label
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.noise import NoiseSampler
from vesselgan.runtime.timing import Phase, Scalars
from vesselgan.training.gan import add_mean, metrics_of_update

# N batch (this rank's slice), C channel (0 image, 1 vessel label), X Y Z voxels
Batch = tuple[Tensor, Tensor]
"""Patches [N, C, X, Y, Z], a tissue map beside image and label if it is given, and their places in the head [N, 3]."""


def train(
    batches: Iterator[Any], steps: range, phase: Phase, update: Callable[[Any, int], Scalars]
) -> Iterator[tuple[int, list[Scalars]]]:
    """Yields (steps done, metrics of the update, on the device) after every step.

    update: of (batch, step); `flow_step`, or that of privacy.step.
    """
    for step in steps:
        with phase("data_wait"):
            batch = next(batches)
        yield step + 1, [update(batch, step)]


def flow_step(
    generator: Engine, batch: Batch, noise: NoiseSampler, step: int, phase: Phase = record_function
) -> Scalars:
    """One update of the network, in micro-batches if the engine takes them: the update is the same."""
    network, device = generator.module, generator.device
    assert isinstance(network, FlowGenerator)
    patch_NCXYZ, position_N3 = batch
    time_N = shifted_times(noise.times_N(step), network.time_shift)
    with phase("flow/noise"):
        noise_NCXYZ = noise.voxels(step, patch_NCXYZ.shape[1:], device)
    num_micro_batches, metrics, is_applied = generator.micro_batches, Scalars(), False
    values = (patch_NCXYZ, noise_NCXYZ, position_N3, time_N)
    for patch, e, position, time in zip(*(value.chunk(num_micro_batches) for value in values), strict=True):
        position, time = position.to(device), time.to(device)
        patch = with_signed_label(patch.to(device, non_blocking=True))
        with phase("flow/denoise"):
            point = network.with_given(point_on_path(patch, e, time), patch)
            denoised = network.denoised(point, time, position)
            error_C = denoising_errors(denoised, patch[:, : network.num_channels], time)
            loss = error_C.mean()
        with phase("flow/backward"):
            generator.backward(loss)
        with phase("flow/update"):
            is_applied = generator.step()
        losses = {"loss/flow": loss, **dict(zip(("loss/flow_image", "loss/flow_label"), error_C, strict=False))}
        add_mean(metrics, losses, num_micro_batches)
    return metrics_of_update(generator, metrics, is_applied)
