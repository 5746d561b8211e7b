"""The critic: counts, float32 scores, one power iteration per forward, independence of the samples."""

import pytest
import torch
from torch import nn

from vesselgan.core.errors import UsageError
from vesselgan.losses.gradient_penalty import by_autograd
from vesselgan.models.blocks import init_weights
from vesselgan.models.critic import Critic

PATCH = (32, 32, 16)


def started(norm: str, width: int = 32) -> Critic:
    critic = Critic(PATCH, width, norm)
    init_weights(critic, 1)
    return critic


@pytest.mark.parametrize("norm", ["instance", "spectral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_are_float32_in_every_precision(norm: str, dtype: torch.dtype) -> None:
    critic = started(norm).to(dtype)
    score = critic(torch.randn(3, 2, *PATCH))
    assert score.dtype == torch.float32 and score.shape == (3,)
    score.sum().backward()
    assert critic.score.weight.grad.dtype == dtype


def test_the_instance_norm_critic_equals_the_authors() -> None:
    critic = started("instance").double()
    layers: list[nn.Module] = []
    for convolution in critic.convolutions:
        plain = nn.Conv3d(convolution.in_channels, convolution.out_channels, 3, stride=2, padding=1).double()
        plain.load_state_dict(convolution.state_dict())
        layers += [plain, nn.InstanceNorm3d(convolution.out_channels), nn.LeakyReLU(0.2)]
    last = nn.Linear(critic.score.in_features, 1).double()
    last.load_state_dict(critic.score.state_dict())
    reference = nn.Sequential(*layers, nn.Flatten(), last)
    x = torch.randn(2, 2, *PATCH, dtype=torch.float64)
    # float64 rounding through four normalisations
    torch.testing.assert_close(critic(x), reference(x).squeeze(1), rtol=1e-10, atol=1e-12)


def test_the_spectral_critic_equals_the_authors() -> None:
    critic = started("spectral").double().eval()
    x = torch.randn(2, 2, *PATCH, dtype=torch.float64)
    y = x
    for convolution in critic.convolutions:
        original = convolution.parametrizations.weight.original
        vectors = convolution.parametrizations.weight[0]
        sigma = vectors.u @ original.flatten(1) @ vectors.v
        y = nn.functional.conv3d(y, original / sigma, convolution.bias, stride=2, padding=1)
        y = nn.functional.leaky_relu(y, 0.2)
    expected = y.flatten(1) @ critic.score.weight[0] + critic.score.bias
    torch.testing.assert_close(critic(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_training_forward_takes_one_power_iteration(dtype: torch.dtype) -> None:
    critic = started("spectral").to(dtype)
    expected = []
    for convolution in critic.convolutions:
        matrix = convolution.parametrizations.weight.original.detach().float().flatten(1)
        u = nn.functional.normalize(matrix @ convolution.parametrizations.weight[0].v, dim=0)
        expected.append(nn.functional.normalize(matrix.t() @ u, dim=0))
    with torch.no_grad():
        critic(torch.randn(1, 2, *PATCH))
    for convolution, v in zip(critic.convolutions, expected, strict=True):
        torch.testing.assert_close(convolution.parametrizations.weight[0].v, v)
    critic.eval()
    before = [convolution.parametrizations.weight[0].v.clone() for convolution in critic.convolutions]
    critic(torch.randn(1, 2, *PATCH))
    for convolution, v in zip(critic.convolutions, before, strict=True):
        assert torch.equal(convolution.parametrizations.weight[0].v, v)


@pytest.mark.parametrize("norm", ["instance", "spectral"])
def test_the_input_gradient_and_its_derivatives_are_autograds(norm: str) -> None:
    critic = started(norm).double().eval()
    x = torch.randn(3, 2, *PATCH, dtype=torch.float64)
    found, expected = critic.input_gradient(x, 3.0), by_autograd(critic)(x, 3.0)
    scale = expected.abs().max().item()
    # float64: sums of some thousand products
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * scale)
    weights = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    ours, theirs = (
        torch.autograd.grad(gradient.flatten(1).square().sum(1).sqrt().sum(), weights, materialize_grads=True)
        for gradient in (found, expected)
    )
    for gradient, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-12 * max(1.0, exact.abs().max().item()))
    assert max(gradient.abs().max() for gradient in ours) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_input_gradient_takes_one_power_iteration(dtype: torch.dtype) -> None:
    ours, theirs = started("spectral").to(dtype), started("spectral").to(dtype)
    x = torch.randn(2, 2, *PATCH)
    found, expected = ours.input_gradient(x, 1024.0), by_autograd(theirs)(x, 1024.0)
    assert found.dtype == dtype
    # float32: another order of sums. Half: every layer's result is rounded by both, the last place may differ.
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    assert (found.float() - expected.float()).abs().max() <= tolerance * expected.float().abs().max()
    for first, second in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("norm", ["instance", "spectral"])
def test_a_score_does_not_depend_on_the_batch(norm: str) -> None:
    critic = started(norm).double().eval()
    x = torch.randn(3, 2, *PATCH, dtype=torch.float64)
    # float64: another batch size may add in another order
    torch.testing.assert_close(critic(x)[1:2], critic(x[1:2]), rtol=1e-10, atol=1e-12)


def test_what_is_no_critic_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\[32, 16, 16\]"):  # one voxel has no instance norm
        Critic((16, 16, 16), 8, "instance")
    with pytest.raises(UsageError, match="instance, spectral"):
        Critic(PATCH, 8, "batch")
