"""One private update, from a Poisson batch: of a GAN's critic (appendix B, corrected), or of a flow.

The gradient of every unit is clipped on its own, and noise is added once per fresh batch. The loss of a unit is that of
its one patch, for a critic and of one generated patch. A GAN's generator sees no real patch, so its steps are
post-processing and spend nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from vesselgan.config.schema import Variant
from vesselgan.data.positions import Places
from vesselgan.losses.flow_matching import denoising_errors, point_on_path
from vesselgan.losses.wasserstein import critic_loss
from vesselgan.models.flow import FlowGenerator, shifted_times, with_signed_label
from vesselgan.privacy.engine import PrivateEngine
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.noise import NoiseSampler, latents_by_patch_NL
from vesselgan.runtime.timing import Phase, Scalars


class PoissonBatch(NamedTuple):
    """This rank's slice of a Poisson batch, possibly empty."""

    indices: Sequence[int]
    """Indices of the patches in their set, one per unit."""
    real_NCXYZ: Tensor
    places: Places | None = None
    """Of the patches in the head, for a flow."""


def critic_step(
    critic: PrivateEngine,
    generator: Engine,
    batch: PoissonBatch,
    noise: NoiseSampler,
    position: int,
    variant: Variant,
    phase: Phase = record_function,
) -> Scalars:
    """One private update of the critic from a Poisson batch.

    The term of a unit is a function of the weights, the key, the position and its own patch: removing the unit changes
    the sum by at most the clipping norm.
    """
    critic.check_single_use(position)
    assert critic.key is not None
    latents_NL = latents_by_patch_NL(critic.key, position, batch.indices, noise.latent_size)
    latents_NL = latents_NL.to(generator.device, generator.dtype)
    for i in range(len(batch.indices)):
        real, latent = batch.real_NCXYZ[i : i + 1], latents_NL[i : i + 1]
        with phase("critic/fake"), torch.no_grad():
            fake = generator.module(latent).to(critic.dtype)
        with phase("critic/scores"):
            loss = critic_loss(critic.module(real.to(critic.device, critic.dtype)), critic.module(fake))
        with phase("critic/backward"):
            critic.backward(loss)
    with phase("critic/update"):
        critic.step()
    metrics = _metrics(critic)
    if "loss/critic" in metrics:
        metrics["loss/wasserstein"] = -metrics["loss/critic"]
    return metrics


def flow_step(generator: PrivateEngine, batch: PoissonBatch, position: int, phase: Phase = record_function) -> Scalars:
    """One private update of a flow from a Poisson batch.

    Noise and time of a unit are functions of the key, the position and its own patch, as in `critic_step`.
    """
    generator.check_single_use(position)
    network, device = generator.module, generator.device
    assert isinstance(network, FlowGenerator) and generator.key is not None and batch.places is not None
    draws_NL = latents_by_patch_NL(generator.key, position, batch.indices, network.num_voxels + 1)
    time_N = shifted_times(torch.special.ndtr(draws_NL[:, -1]), network.time_shift)
    noise_NCXYZ = draws_NL[:, :-1].view(-1, network.num_channels, *network.patch_shape)
    values = [v.to(device) for v in (with_signed_label(batch.real_NCXYZ), noise_NCXYZ, time_N, *batch.places)]
    for i in range(len(batch.indices)):
        patch, e, time, place, extent = (v[i : i + 1] for v in values)
        with phase("flow/denoise"):
            point = network.with_given(point_on_path(patch, e, time), patch)
            denoised = network.denoised(point, time, place, extent[0])
            loss = denoising_errors(denoised, patch[:, : network.num_channels], time).mean()
        with phase("flow/backward"):
            generator.backward(loss)
    with phase("flow/update"):
        generator.step()
    return _metrics(generator, "loss/flow")


def _metrics(engine: PrivateEngine, loss: str = "loss/critic") -> Scalars:
    """Over all ranks; an empty batch has no loss."""
    batch = engine.batch
    counts = {
        "units": batch.num_units,
        "empty_batches": batch.num_units == 0,
        "dropped_units": batch.num_dropped,
    }
    metrics = {f"dp/{name}": torch.tensor(float(value)) for name, value in counts.items()}
    metrics[f"grad_norm/{engine.name}"] = engine.gradient_norm
    if batch.num_units > batch.num_dropped:
        metrics[loss] = torch.tensor(batch.mean_loss)
    return metrics
