"""The upsampling convolution is upsampling, then convolution."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vesselgan.models.upsampling import UpsampleConv3d

# Sums of some hundred float64 products of order one, added in another order.
FLOAT64_ROUNDING = {"rtol": 1e-12, "atol": 1e-12}


def plainly(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    batch=st.integers(1, 3),
)
def test_upsampling_convolution_equals_the_two_steps(shape, channels, batch) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in ((batch, channels[0], *shape), (channels[1], channels[0], 3, 3, 3), (channels[1],))
    ]
    layer = UpsampleConv3d(*channels).double()
    found, expected = layer._conv_forward(*inputs), plainly(*inputs)
    assert found.shape == (batch, channels[1], *(2 * side for side in shape))
    torch.testing.assert_close(found, expected, **FLOAT64_ROUNDING)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(y, inputs, upstream) for y in (found, expected))
    for gradient, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, exact, **FLOAT64_ROUNDING)


def test_the_layer_keeps_the_plain_weight() -> None:
    layer = UpsampleConv3d(4, 6)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {"weight": (6, 4, 3, 3, 3), "bias": (6,)}


def errors(layer: UpsampleConv3d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Distance from float64 of ours, and of the two steps with float32 sums rounded once, as tensor cores have it."""
    exact = plainly(x.double(), layer.weight.double(), layer.bias.double())
    plain = plainly(x.float(), layer.weight.float(), layer.bias.float()).to(x.dtype)
    return (layer(x).double() - exact).abs(), (plain.double() - exact).abs()


def test_half_errs_no_more_than_two_steps() -> None:
    torch.manual_seed(1)
    ours, theirs = errors(UpsampleConv3d(16, 8).half(), torch.randn(2, 16, 6, 5, 4).half())
    # Both are float32 sums rounded to half; in another order a sum may fall to the other side, once in a while.
    assert ours.mean() <= 1.01 * theirs.mean() and ours.max() <= 1.01 * theirs.max()


def test_bfloat16_errs_little_more_than_two_steps() -> None:
    torch.manual_seed(1)
    ours, theirs = errors(UpsampleConv3d(16, 8).bfloat16(), torch.randn(2, 16, 6, 5, 4).bfloat16())
    # bfloat16 (and half on a GPU) rounds the sums of taps too, where the two steps have none: measured 1.5.
    assert ours.mean() <= 2 * theirs.mean()
