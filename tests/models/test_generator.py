"""The generator: Table 2's counts, what a sample depends on, every precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vesselgan.core.errors import UsageError
from vesselgan.models.blocks import init_weights
from vesselgan.models.critic import Critic
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.generator import Generator, latents, sample_seed


def trained_a_little(width: int = 16) -> Generator:
    """Running statistics away from their start, so that evaluation mode has something to use."""
    generator = Generator((32, 32, 16), width, 8)
    init_weights(generator, 1)
    for step in range(3):
        generator(latents(step, range(4), 8))
    return generator


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("width", "in_generator", "in_critic"),
    [(512, 139_916_994, 4_780_353), (1024, 289_123_714, 18_850_433)],
)
@pytest.mark.parametrize("norm", ["instance", "spectral"])
def test_parameter_counts_are_the_papers(width: int, in_generator: int, in_critic: int, norm: str) -> None:
    with torch.device("meta"):
        generator, critic = Generator((128, 128, 64), width, 128), Critic((128, 128, 64), width, norm)
    assert (count(generator), count(critic)) == (in_generator, in_critic)


def plain_forward(generator: Generator, z_NL: Tensor) -> Tensor:
    """The same layers as the authors' wording has them: upsampling first, then the convolution."""
    x = F.linear(z_NL, generator.start.weight, generator.start.bias).view(-1, *generator.start_shape)
    norm = generator.start_norm
    x = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True).relu()
    for up, norm in zip(generator.ups, generator.norms, strict=True):
        x = F.conv3d(F.interpolate(x, scale_factor=2, mode="nearest"), up.weight, up.bias, padding=1)
        x = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True).relu()
    return F.conv3d(x, generator.last.weight, generator.last.bias, padding=1).tanh()


def test_the_generator_equals_the_plain_form() -> None:
    generator = Generator((16, 32, 48), 16, 6)
    init_weights(generator, 2)
    generator.double()
    z = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = generator(z), plain_forward(generator, z)
    assert found.shape == (2, 2, 16, 32, 48)
    # float64 rounding through four normalisations
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    trained = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    gradients = (torch.autograd.grad(y.square().sum(), trained) for y in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9 * theirs.abs().max().item())


def test_only_in_training_a_sample_sees_its_neighbours() -> None:
    generator = trained_a_little()
    z, others = latents(0, range(4), 8), latents(1, range(4), 8)
    mixed = torch.cat([others[:2], z[2:3], others[3:]])
    with torch.no_grad():
        assert (generator(z)[2] - generator(mixed)[2]).abs().max() > 1e-4
        generator.eval()
        among_these, alone = generator(z)[2], generator(z[2:3])[0]
        # In a batch of the same size: to the bit.
        assert torch.equal(among_these, generator(mixed)[2])
    # Another batch size may select other kernels, which add in another order: float32 rounding.
    torch.testing.assert_close(alone, among_these, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_output_is_near_float32s(dtype: torch.dtype) -> None:
    generator = trained_a_little().eval()
    z = latents(0, range(2), 8)
    with torch.no_grad():
        expected = generator(z)
        found = generator.to(dtype)(z)
    assert found.dtype == dtype
    assert all(buffer.dtype == torch.float32 for buffer in generator.buffers() if buffer.is_floating_point())
    # Weights and every activation are rounded: some units of 2^-11 (half) or 2^-8 (bfloat16) of the largest value.
    unit = {torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    assert (found.float() - expected).abs().max() < 16 * unit * expected.abs().max()


def test_half_gives_every_parameter_a_gradient() -> None:
    generator = trained_a_little().half()
    # The factor stands for a loss scale: without one, half loses small gradients.
    generator(latents(0, range(4), 8)).float().square().mean().mul(1024).backward()
    for name, parameter in generator.named_parameters():
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("width", [0, 4, 12, -8])
def test_a_width_that_does_not_halve_is_refused(width: int) -> None:
    with pytest.raises(UsageError, match="variant.width"):
        Generator((16, 16, 16), width, 8)


def test_a_patch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\[32, 32, 16\]"):
        Generator((32, 32, 20), 8, 8)


def test_a_latent_depends_on_seed_and_index_alone() -> None:
    together = latents(3, [0, 1, 2], 128)
    assert torch.equal(together[1], latents(3, [1], 128)[0])
    assert together.dtype == torch.float32 and together.shape == (3, 128)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], latents(4, [0], 128)[0])
    # torch's generator from the sample's own seed alone gives the same latent.
    alone = torch.randn(128, generator=torch.Generator().manual_seed(sample_seed(3, 2)))
    assert torch.equal(together[2], alone)


def test_latents_are_standard_normal() -> None:
    values = latents(0, range(200), 128)
    n = values.numel()
    assert abs(values.mean().item()) < 4 / n**0.5
    assert values.std().item() == pytest.approx(1, abs=4 / (2 * n) ** 0.5)


def test_no_sample_seed_comes_twice() -> None:
    seeds = [sample_seed(seed, index) for seed in range(5) for index in range(2000)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) and max(seeds) < 2**32


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_seeds_are_refused(seed: int, index: int) -> None:
    with pytest.raises(UsageError, match="-1"):
        sample_seed(seed, index)


def test_with_groups_a_sample_knows_no_other() -> None:
    generator = Generator((32, 32, 16), 64, 8, "group")
    init_weights(generator, 1)
    z_NL = latents(3, range(4), 8)
    alone = torch.cat([generator(z_NL[i : i + 1]) for i in range(4)])
    # The same sums in kernels that another batch size selects.
    torch.testing.assert_close(generator(z_NL), alone, rtol=0, atol=1e-5)
    assert all(parameter.requires_grad for parameter in generator.parameters())
    generator(z_NL).square().sum().backward()
    # An idle bias has a gradient of rounding noise, 1e-7 of its layer's.
    assert all(up.bias.grad.norm() > 1e-3 * up.weight.grad.norm() / up.weight[0].numel() for up in generator.ups)


@pytest.mark.parametrize("width", range(8, 264, 8))
def test_every_multiple_of_eight_is_a_width(width: int) -> None:
    settings = {"has_position": True, "time_shift": 2.0, "num_steps": 2, "guidance": 0.0}
    with torch.device("meta"):
        assert count(Generator((16, 16, 16), width, 8, "group")) == count(Generator((16, 16, 16), width, 8))
        FlowGenerator((16, 16, 16), width, **settings)
