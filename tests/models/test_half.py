"""In half precision: what must stay float32 does, no epsilon vanishes, and an overflow leaves no trace in averages."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vesselgan.losses.gradient_penalty import gradient_penalty
from vesselgan.models.blocks import BatchNorm3d, init_weights, iterate_spectral_norms
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.models.unet import Unet

PATCH = (32, 32, 16)
HALVES = [torch.float16, torch.bfloat16]
# Sums of squares, roots, and the products of a power iteration: what overflows or vanishes in half.
TENDER = {"sqrt", "rsqrt", "pow", "norm", "linalg_vector_norm", "mv", "dot", "addmv", "var_mean", "std", "var"}


class Tender(TorchDispatchMode):
    """Collects tender operations that take or give half."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.num_tender = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name in TENDER:
            self.num_tender += 1
            self.seen += [name for value in (*args, result) if isinstance(value, Tensor) and value.dtype in HALVES]
        return result


def networks(dtype: torch.dtype) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every network, with an input for it."""
    torch.manual_seed(0)
    made = {
        "instance": (Critic(PATCH, 16, "instance"), torch.randn(2, 2, *PATCH)),
        "spectral": (Critic(PATCH, 16, "spectral"), torch.randn(2, 2, *PATCH)),
        "generator": (Generator(PATCH, 16, 4), torch.randn(2, 4)),
    }
    for name, (network, x) in made.items():
        init_weights(network, 1)
        yield name, network.to(dtype), x.to(dtype)
    for levels in ("hilbert", "residual"):
        yield levels, Unet([4, 6], 0.0, network=levels).to(dtype), 100 * torch.rand(2, 1, *PATCH).to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_statistics_power_iteration_and_penalty_are_float32(dtype):
    with Tender() as tender:
        for name, network, x in networks(dtype):
            network.train()(x).float().sum().backward()
            if name in ("instance", "spectral"):
                iterate_spectral_norms(network.eval())
                found = gradient_penalty(network.input_gradient, x, x.flip(0), epsilon=torch.rand(2), weight=10.0)
                found.value.backward()
                assert {value.dtype for value in found} == {torch.float32}
            kinds = {key: value.dtype for key, value in network.named_buffers() if value.is_floating_point()}
            assert set(kinds.values()) <= {torch.float32}, kinds
            assert all(p.dtype == dtype for p in network.parameters())
    assert tender.seen == [] and tender.num_tender > 10


def test_the_watch_sees_tender_operations():
    with Tender() as tender:
        torch.ones(2, dtype=torch.float16).square()
    assert tender.seen == ["pow", "pow"]  # what it takes and what it gives


@pytest.mark.parametrize("dtype", HALVES)
def test_no_epsilon_vanishes_in_a_flat_network(dtype):
    # 1e-5 squared or 1e-12 is zero in half: 0 / 0 where a normalisation sees a constant.
    num_epsilons = 0
    for _, network, x in networks(dtype):
        flat = torch.zeros_like(x)
        for part in network.modules():
            epsilons = [value for key, value in vars(part).items() if key.startswith("eps")]
            num_epsilons += len(epsilons)
            assert all(value > 0 for value in epsilons)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() == 1:
                    parameter.zero_()  # biases, and the scales of normalisations
        result = network.train()(flat).float()
        assert result.isfinite().all()
        result.sum().backward()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert num_epsilons >= 4 + 1 + 4


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_overflow_stays_out_of_running_averages(bad):
    norm, batch = BatchNorm3d(3), torch.randn(2, 3, 2, 2, 2)
    norm.train()(batch)
    before = {key: value.clone() for key, value in norm.named_buffers()}
    spoilt = batch.clone()
    spoilt[0, 1, 0, 0, 0] = bad
    norm(spoilt)
    assert all(torch.equal(value, before[key]) for key, value in norm.named_buffers())
    # And the next good one is the second.
    norm(batch + 2)
    assert norm.num_batches == 2
    torch.testing.assert_close(norm.running_mean, batch.mean((0, 2, 3, 4)) + 1)
