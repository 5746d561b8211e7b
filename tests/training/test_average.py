"""Moving average and standing statistics, against sums done by hand."""

import numpy as np
import pytest
import torch

from vesselgan.models.blocks import init_weights
from vesselgan.models.generator import Generator
from vesselgan.runtime.noise import NoiseSampler, Stream
from vesselgan.training.average import (
    STANDING_BATCHES,
    MovingAverage,
    standing_statistics,
    swapped_weights,
)

PATCH, WIDTH, LATENT = (16, 16, 16), 8, 4
DRAWS = NoiseSampler(seed=3, batch_size=4, latent_size=LATENT)


def generator() -> Generator:
    module = Generator(PATCH, WIDTH, LATENT)
    init_weights(module, 1)
    return module


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("decay", "steps", "moved"),
    [
        (0.5, (100, 101, 102), 7 / 8),  # three steps at decay 1/2 leave 1/8 of the jump
        (0.999, (1,), 10 / 11),  # at step 1 the average keeps 1/11 of the start, so that it is forgotten
    ],
)
def test_the_average_follows_a_jump(decay, steps, moved):
    module = generator()
    average = MovingAverage(module, decay=decay)
    before = module.last.bias[0].item()
    with torch.no_grad():
        module.last.bias += 8.0
    for step in steps:
        average.after_step(step)
    torch.testing.assert_close(average.weights["last.bias"][0].item(), before + 8.0 * moved)


def test_standing_statistics_average_latent_batches():
    module = generator().train()
    before = state(module)
    standing = standing_statistics(module, DRAWS, torch.device("cpu"))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert module.training and module.start_norm.momentum == 0.1
    # The first normalisation sees the linear layer alone, so its mean can be computed apart.
    means = []
    for position in range(STANDING_BATCHES):
        with torch.no_grad():
            x = module.start(DRAWS.latents_NL(Stream.STANDING_LATENTS, position)).view(4, WIDTH, -1)
        means.append(x.double().mean((0, 2)).numpy())
    # float32 running means of 100 batches against float64.
    np.testing.assert_allclose(standing["start_norm.running_mean"], np.mean(means, 0), atol=1e-5)


def test_the_generator_gets_its_weights_back():
    module = generator()
    before = state(module)
    other = {name: p.detach() + 1 for name, p in module.named_parameters()}
    with swapped_weights(module, other):
        assert torch.equal(module.last.bias, other["last.bias"])
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_ranks_share_a_positions_latents():
    whole = DRAWS.latents_NL(0, 5)
    parts = [NoiseSampler(3, 4, LATENT, of_rank).latents_NL(0, 5) for of_rank in (slice(0, 2), slice(2, 4))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, DRAWS.latents_NL(1, 5)) and not torch.equal(whole, DRAWS.latents_NL(0, 6))
