"""The penalty's closed forms, its precision, and that it is equation 1 differentiated."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vesselgan.core.errors import UsageError
from vesselgan.losses.gradient_penalty import by_autograd, gradient_penalty
from vesselgan.models.blocks import init_weights
from vesselgan.models.critic import Critic

PATCH = (4, 2, 4, 4, 2)


pytestmark = pytest.mark.usefixtures("one_thread")


def linear_critic(slope: float, numel: int = math.prod(PATCH[1:])) -> Callable[[Tensor], Tensor]:
    """f(x) = <w, x> with |w| = slope: the gradient is w everywhere."""
    w = torch.full((numel,), slope / math.sqrt(numel))
    return lambda x: x.flatten(1) @ w.to(x.dtype)


def penalty(critic: Callable[[Tensor], Tensor], reduction: str = "sample", shape: tuple[int, ...] = PATCH) -> Tensor:
    return gradient_penalty(
        by_autograd(critic),
        torch.randn(shape),
        torch.randn(shape),
        epsilon=torch.rand(shape[0]),
        weight=10.0,
        reduction=reduction,
    ).value


@pytest.mark.parametrize(
    ("slope", "reduction", "samples", "cost"),
    [
        (1.0, "sample", 4, 0.0),
        (1.0, "sample", 1, 0.0),
        (1.0, "batch", 1, 0.0),
        (1.0, "batch", 4, 10.0),  # the authors' norm over the whole batch is sqrt(4 * 1) = 2: 10 * (2 - 1)^2
        (3.0, "sample", 4, 40.0),  # 10 * (3 - 1)^2
    ],
)
def test_the_penalty_of_a_linear_critic(slope: float, reduction: str, samples: int, cost: float) -> None:
    # Float32 rounding of a norm of one, squared and times ten.
    found = penalty(linear_critic(slope), reduction, (samples, *PATCH[1:])).item()
    assert found == pytest.approx(cost, rel=1e-5, abs=1e-11)


def test_samples_of_different_slope_are_averaged() -> None:
    def critic(x: Tensor) -> Tensor:
        slopes = torch.tensor([1.0, 2.0, 3.0, 0.5])
        return slopes * linear_critic(1.0)(x)

    # 10 * (0 + 1 + 4 + 0.25) / 4
    assert penalty(critic).item() == pytest.approx(13.125, rel=1e-5)


@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_a_flat_critic_has_a_finite_gradient(reduction: str) -> None:
    w = torch.zeros(math.prod(PATCH[1:]), requires_grad=True)
    found = penalty(lambda x: x.flatten(1) @ w, reduction)
    # 10 * (0 - 1)^2; the norm is 1e-6 instead of 0.
    assert found.item() == pytest.approx(10.0, rel=1e-5)
    found.backward()
    assert torch.isfinite(w.grad).all()


def test_the_line_runs_from_fake_to_real() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    real, fake = torch.ones(PATCH), torch.zeros(PATCH)
    epsilon = torch.tensor([0.0, 0.25, 0.5, 1.0])
    for reduction, expected in (("sample", [0.0, 0.25, 0.5, 1.0]), ("batch", [0.0, 0.0, 0.0, 0.0])):
        gradient_penalty(by_autograd(critic), real, fake, epsilon=epsilon, weight=10.0, reduction=reduction)
        assert seen[-1].flatten(1).mean(1).tolist() == expected
    gradient_penalty(by_autograd(critic), real, fake, epsilon=epsilon.flip(0), weight=10.0, reduction="batch")
    assert seen[-1].flatten(1).mean(1).tolist() == [1.0] * 4


def test_patches_get_no_gradient() -> None:
    real, fake = torch.randn(PATCH), torch.randn(PATCH, requires_grad=True)
    w = torch.randn(math.prod(PATCH[1:]), requires_grad=True)
    found = gradient_penalty(
        by_autograd(lambda x: x.flatten(1).square() @ w), real, fake, epsilon=torch.rand(4), weight=10.0
    )
    found.value.backward()
    assert fake.grad is None and w.grad.abs().max() > 0


def test_the_gradient_is_that_of_equation_1() -> None:
    real, fake = torch.randn(PATCH, dtype=torch.float64), torch.randn(PATCH, dtype=torch.float64)
    epsilon = torch.rand(4, dtype=torch.float64)
    w = torch.randn(math.prod(PATCH[1:]), dtype=torch.float64, requires_grad=True)

    def value(w: Tensor) -> Tensor:
        return gradient_penalty(
            by_autograd(lambda x: x.flatten(1).tanh() @ w), real, fake, epsilon=epsilon, weight=10.0, reduction="sample"
        ).value

    # By hand: the gradient of sum_i w_i tanh(x_i) is w_i (1 - tanh(x_i)^2).
    x = epsilon.view(-1, 1) * real.flatten(1) + (1 - epsilon.view(-1, 1)) * fake.flatten(1)
    norms = ((w * (1 - x.tanh().square())).square().sum(1)).sqrt()
    torch.testing.assert_close(value(w), 10 * (norms - 1).square().mean(), rtol=1e-9, atol=0)
    assert torch.autograd.gradcheck(value, (w,))


def test_a_half_critics_penalty_does_not_underflow() -> None:
    numel = 2 * 128 * 128 * 64
    per_voxel = 2e-8  # below half's smallest number, 6e-8

    def critic(x: Tensor) -> Tensor:
        # What a half critic does: its input, and so the gradient on it, is half; the score is float32.
        return x.half().float().flatten(1).sum(1) * per_voxel

    x = torch.zeros(1, 2, 128, 128, 64)
    found = {
        scale: gradient_penalty(by_autograd(critic), x, x, epsilon=torch.rand(1), weight=1.0, inner_scale=scale)
        for scale in (1.0, 1024.0)
    }
    penalty_by_scale = {scale: penalty.value.item() for scale, penalty in found.items()}
    norm = per_voxel * math.sqrt(numel)
    # Lost without the scale (the norm is then the root's 1e-6). With it 2e-5, which half holds in steps of 6e-8: to
    # 0.15 % of the norm; and float32's rounding of the square.
    assert penalty_by_scale[1.0] == pytest.approx(1.0, abs=1e-5)
    assert penalty_by_scale[1024.0] == pytest.approx((1 - norm) ** 2, abs=2 * norm * 0.0015 + 2e-7)
    assert abs(penalty_by_scale[1.0] - penalty_by_scale[1024.0]) > 1e-5
    # All voxels are lost, or none, and the slope says so too.
    assert (found[1.0].zero_fraction.item(), found[1024.0].zero_fraction.item()) == (1.0, 0.0)
    assert found[1024.0].grad_norm.item() == pytest.approx(math.hypot(norm, 1e-6), rel=0.0015)


def test_underflow_is_a_share_of_voxels() -> None:
    w = torch.ones(math.prod(PATCH[1:]))
    w[:16] = 0.0  # of 64
    found = gradient_penalty(
        by_autograd(lambda x: x.flatten(1) @ w),
        torch.randn(PATCH),
        torch.randn(PATCH),
        epsilon=torch.rand(4),
        weight=10.0,
    )
    assert found.zero_fraction.item() == 0.25
    assert found.grad_norm.item() == pytest.approx(math.sqrt(48), rel=1e-6)


@pytest.mark.parametrize("norm", ["instance", "spectral"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_half_critics_give_the_float32_penalty(norm: str, dtype: torch.dtype, tolerance: float) -> None:
    shape = (2, 2, 32, 32, 16)
    real, fake, epsilon = torch.randn(shape), torch.randn(shape), torch.rand(2)
    penalty_by_scale, gradients = [], []
    for kind in (torch.float32, dtype):
        critic = Critic(shape[2:], 16, norm)
        init_weights(critic, 1)
        with torch.no_grad():
            critic.score.weight.mul_(20)  # slopes of order one: the penalty then tells one critic from another
        critic.to(kind)
        found = gradient_penalty(critic.input_gradient, real, fake, epsilon=epsilon, weight=10.0)
        assert found.value.dtype == torch.float32
        # A loss scale for the outer backward; the instance norm's slopes are steep enough without.
        found.value.mul(256 if norm == "spectral" else 1).backward()
        penalty_by_scale.append(found.value.item())
        gradients.append(torch.cat([p.grad.float().flatten() for p in critic.parameters() if p.grad is not None]))
    # Half keeps 11 bits and bfloat16 8, through four layers and back twice.
    assert penalty_by_scale[1] == pytest.approx(penalty_by_scale[0], rel=tolerance)
    assert (gradients[1] - gradients[0]).norm() < 2 * tolerance * gradients[0].norm()


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UsageError, match="sample, batch"):
        penalty(linear_critic(1.0), "whole")
