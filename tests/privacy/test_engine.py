"""One private step by paper and pencil: clipping, noise, division, empty batches, spoiled units, refused layers."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vesselgan.core.errors import PrivacyError, UsageError
from vesselgan.models.blocks import BatchNorm3d, Conv3d, SpectralNorm
from vesselgan.models.critic import Critic
from vesselgan.privacy.engine import PrivateEngine, build_private, check_layers
from vesselgan.runtime.distributed import World

WORLD = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def engine(*, noise: float = 1e-12, weight_clip: float = 1e9, batch: float = 4.0, width: int = 2) -> PrivateEngine:
    """Of f(x) = <w, x> at w = 0. Its Adam has beta2 = 0 and rate 1, so a step is the sign of the gradient."""
    module = nn.Linear(width, 1, bias=False)
    nn.init.zeros_(module.weight)
    built = build_private(
        "critic", module, learning_rate=1.0, betas=[0.0, 0.0], noise_multiplier=noise, clip_norm=1.0,
        expected_batch=batch, weight_clip=weight_clip, world=WORLD,
    )  # fmt: skip
    built.key = 3
    return built


def take(built: PrivateEngine, *gradients: list[float]) -> Tensor:
    """One step on units with these gradients; the norm of the sum over the expected batch."""
    for gradient in gradients:
        built.backward(built.module(torch.tensor([gradient])).sum())
    built.step()
    return built.gradient_norm


def test_every_units_gradient_is_clipped():
    # (3, 4) is cut to (0.6, 0.8), (0.3, 0) stays: sum (0.9, 0.8), over the 4 units that are expected, not the 2 there.
    norm = take(engine(), [3.0, 4.0], [0.3, 0.0])
    # 1e-6 is what Opacus adds to a norm before it divides by it.
    assert norm.item() == pytest.approx(np.hypot(0.9, 0.8) / 4, rel=2e-6)


def test_the_noise_is_added_once():
    # 40,000 weights, so the noise's norm is its standard deviation times 200 within 0.35 % (one standard error).
    for units in (0, 3):
        norm = take(engine(noise=2.0, batch=4.0, width=40_000), *[[0.0] * 40_000] * units)
        assert norm.item() == pytest.approx(2.0 * 200 / 4, rel=0.015)


def test_an_empty_batch_is_a_release_too():
    built = engine(noise=1.0)
    take(built)
    assert (built.num_releases, built.batch.num_units, built.skipped_steps) == (1, 0, 0)
    assert built.module.weight.abs().max() > 0


def test_noise_is_a_function_of_key_and_release():
    one, two, other = (engine(noise=1.0) for _ in range(3))
    other.key = 4
    norms = [[take(built).item() for _ in range(2)] for built in (one, two, other)]
    assert norms[0] == norms[1] and norms[0][0] != norms[0][1] and norms[2][0] != norms[0][0]


def test_the_noise_comes_from_all_of_the_key():
    for key in (3, 2**127 + 3):
        built = engine(noise=2.0, batch=4.0)
        built.key = key
        take(built)
        source = np.random.Philox(np.random.SeedSequence((key, 1, 0xD0)))
        expected = np.random.Generator(source).standard_normal((1, 2), np.float32)
        norm = take(built)
        assert norm.item() == pytest.approx(np.linalg.norm(2.0 * expected) / 4, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_infinite_unit_counts_as_zero(bad):
    built = engine()
    norm = take(built, [bad, 1.0], [0.6, 0.8])
    assert norm.item() == pytest.approx(1 / 4, rel=2e-6)
    assert (built.batch.num_units, built.batch.num_dropped, built.skipped_steps) == (2, 1, 1)
    assert built.skips.bad_in_a_row == 0
    take(built, [bad, 1.0])
    assert built.skips.bad_in_a_row == 1


def test_weights_stay_within_their_clip():
    built = engine(noise=1.0, weight_clip=0.01)
    take(built, [3.0, -4.0])
    assert built.module.weight.abs().tolist() == [[pytest.approx(0.01)] * 2]


def test_a_batch_is_released_once():
    built = engine()
    built.check_single_use(0)
    take(built)
    with pytest.raises(PrivacyError) as raised:
        built.check_single_use(0)
    assert raised.value.exit_code == 7
    with pytest.raises(PrivacyError):
        built.check_single_use(2)


def test_the_critics_gradients_are_its_units():
    """Against autograd on every unit by itself, clipped and added by hand."""
    source = torch.Generator().manual_seed(1)
    patches = torch.randn(3, 2, 32, 32, 16, generator=source)
    module = Critic((32, 32, 16), 8, "instance")
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    for patch in patches:
        gradients = torch.autograd.grad(module(patch[None]).sum(), parameters)
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        total = [t + g * min(1.0, 0.5 / norm.item()) for t, g in zip(total, gradients, strict=True)]
    built = build_private(
        "critic", module, learning_rate=1e-4, betas=[0.0, 0.9], noise_multiplier=1e-12, clip_norm=0.5,
        expected_batch=1, weight_clip=1.0, world=WORLD,
    )  # fmt: skip
    built.key = 0
    for patch in patches:
        built.backward(built.module(patch[None]).sum())
    built.step()
    expected = torch.sqrt(sum(t.square().sum() for t in total)).item()
    assert built.gradient_norm.item() == pytest.approx(expected, rel=1e-5)  # float32 sums in another order


def test_layers_without_a_gradient_per_unit_are_refused():
    for norm in (nn.BatchNorm3d(4), BatchNorm3d(4)):
        with pytest.raises(UsageError, match="BatchNorm3d") as raised:
            check_layers(nn.Sequential(Conv3d(2, 4, 3), norm))
        assert raised.value.exit_code == 2
    spectral = Conv3d(2, 4, 3)
    nn.utils.parametrize.register_parametrization(spectral, "weight", SpectralNorm(spectral.weight))
    with pytest.raises(UsageError, match="critic_norm=instance"):
        check_layers(nn.Sequential(spectral))
    check_layers(Critic((32, 32, 16), 8, "instance"))
