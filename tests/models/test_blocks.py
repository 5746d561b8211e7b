"""Layers: exactness of the upsampling convolution, float32 statistics, batch statistics over ranks, spectral norm."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from vesselgan.core.errors import UsageError
from vesselgan.models.blocks import (
    BatchNorm3d,
    Conv3d,
    InstanceNorm3d,
    Linear,
    NarrowConv3d,
    SpectralNorm,
    check_patch_shape,
    freeze_bias,
    init_weights,
    set_trainable,
)
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.models.normalisation import batch_statistics
from vesselgan.models.upsampling import UpsampleConv3d

# Sums of some hundred float64 products of order one, added in another order.
FLOAT64_ROUNDING = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("shape", [(2, 4, 6), (3, 4, 5), (1, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_narrow_convolution_equals_the_plain_one(shape: tuple[int, int, int], layout: torch.memory_format) -> None:
    layer = NarrowConv3d(3, 2).double()
    x = torch.randn(2, 3, *shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_(True)
    found, expected = layer(x), F.conv3d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(found, expected, **FLOAT64_ROUNDING)
    upstream = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(y, (x, layer.weight, layer.bias), upstream) for y in (found, expected))
    torch.testing.assert_close(ours, theirs, **FLOAT64_ROUNDING)


@pytest.mark.parametrize(
    ("kind", "sizes", "shape"),
    [
        (Conv3d, (3, 4, 3, 2, 1), (2, 3, 6, 4, 4)),
        (UpsampleConv3d, (3, 4), (2, 3, 3, 4, 2)),
        (NarrowConv3d, (3, 2), (2, 3, 2, 4, 4)),
        (Linear, (24, 5), (2, 24)),
    ],
)
def test_half_layers_compute_in_float32(kind: type[nn.Module], sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    layer, reference = kind(*sizes).half(), kind(*sizes)
    reference.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    # To the bit: the same float32 computation, rounded once; backward too.
    x_half = torch.randn(shape).half().requires_grad_(True)
    x_float = x_half.detach().float().requires_grad_(True)
    found, expected = layer(x_half), reference(x_float)
    assert found.dtype == torch.float16 and torch.equal(found, expected.half())
    upstream = torch.randn(found.shape).half()
    ours = torch.autograd.grad(found, (x_half, layer.weight, layer.bias), upstream)
    theirs = torch.autograd.grad(expected, (x_float, reference.weight, reference.bias), upstream.float())
    for gradient, exact in zip(ours, theirs, strict=True):
        assert gradient.dtype == torch.float16 and torch.equal(gradient, exact.half())


def test_half_sums_do_not_overflow_inside() -> None:
    layer = Linear(4, 1).half()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[60000.0, 60000.0, -60000.0, -60000.0]]))
        layer.bias.zero_()
    assert layer(torch.ones(1, 4).half()).item() == 0.0


def test_batch_norm_equals_torchs_in_training_and_evaluation() -> None:
    # momentum=None is torch's name for plain means; ten batches are as long as ours takes them.
    ours, theirs = BatchNorm3d(3).double(), nn.BatchNorm3d(3, momentum=None).double()
    for step in range(10):
        x = 2 * torch.randn(4, 3, 2, 3, 2, dtype=torch.float64) + step
        torch.testing.assert_close(ours(x), theirs(x), **FLOAT64_ROUNDING)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, **FLOAT64_ROUNDING)
    torch.testing.assert_close(ours.running_var, theirs.running_var, **FLOAT64_ROUNDING)
    # From then on they are exponential with a share of a tenth.
    theirs.momentum = 0.1
    for _ in range(3):
        x = 2 * torch.randn(4, 3, 2, 3, 2, dtype=torch.float64) - 1
        torch.testing.assert_close(ours(x), theirs(x), **FLOAT64_ROUNDING)
    torch.testing.assert_close(ours.running_var, theirs.running_var, **FLOAT64_ROUNDING)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), **FLOAT64_ROUNDING)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("sides", [(64, 64, 64), (63, 61, 5)])
def test_statistics_of_many_voxels_keep_float32(layout: torch.memory_format, sides) -> None:
    # torch's own of a channels-last tensor of 64x64x64 are off by 1e-4 on a CPU.
    x = (0.3 * torch.randn(2, 4, *sides, generator=torch.Generator().manual_seed(1)) + 0.3).contiguous(
        memory_format=layout
    )
    mean_C, variance_C, count = batch_statistics(x, False)
    exact_variance_C, exact_mean_C = torch.var_mean(x.double(), (0, 2, 3, 4), unbiased=False)
    torch.testing.assert_close(mean_C.double(), exact_mean_C, rtol=1e-6, atol=0)
    torch.testing.assert_close(variance_C.double(), exact_variance_C, rtol=1e-6, atol=0)
    assert count == 2 * math.prod(sides)


def test_batch_norm_over_one_value_is_refused() -> None:
    with pytest.raises(UsageError, match="batch"):
        BatchNorm3d(3)(torch.randn(1, 3, 1, 1, 1))


def test_batch_norm_evaluates_after_a_single_batch() -> None:
    norm = BatchNorm3d(2).double()
    x = 1e-3 * torch.randn(4, 2, 5, 5, 5, dtype=torch.float64) + 7
    trained = norm(x)
    norm.eval()
    # The running variance is unbiased, the batch's own is not: n / (n - 1), n = 500.
    torch.testing.assert_close(norm(x), trained, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_batch_norm_statistics_stay_float32(dtype: torch.dtype) -> None:
    norm = BatchNorm3d(2).to(dtype)
    assert norm.weight.dtype == dtype
    x = (1000 * torch.randn(4, 2, 4, 4, 4)).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    assert norm.running_var.dtype == norm.running_mean.dtype == torch.float32
    # A variance of a million is beyond half's 65,504.
    expected = x.float().var((0, 2, 3, 4))
    torch.testing.assert_close(norm.running_var, expected, rtol=1e-4, atol=0)
    assert torch.isfinite(y).all()
    # Stored output is rounded to half or bfloat16: at most 2^-8 of a value of order one.
    torch.testing.assert_close(y.float().var((0, 2, 3, 4), unbiased=False), torch.ones(2), rtol=2**-8, atol=0)


def _normalised(part: slice) -> list[Tensor]:
    """Of these of six samples: values, their gradients, running statistics, the scale's and the shift's gradients."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(6, 3, 2, 3, 2, generator=generator, dtype=torch.float64) * 3 + 5
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    norm = BatchNorm3d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
    mine = x[part].clone().requires_grad_(True)
    y = norm(mine)
    dx, *dparameters = torch.autograd.grad(y, (mine, norm.weight, norm.bias), upstream[part])
    return [y.detach(), dx, norm.running_mean, norm.running_var, *dparameters]


def _normalise_part(rank: int, folder: Path) -> None:
    """A rank's share, unevenly divided: 2 samples for rank 0, 4 for rank 1."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(_normalised(slice(0, 2) if rank == 0 else slice(2, 6)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_the_joined_batch(tmp_path) -> None:
    mp.start_processes(_normalise_part, (tmp_path,), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for place, expected in enumerate(_normalised(slice(0, 6))):
        if place < 2:
            found = torch.cat([first[place], second[place]])
        elif place < 4:
            assert torch.equal(first[place], second[place])
            found = first[place]
        else:  # each rank holds its part of the scale's and shift's gradients
            found = first[place] + second[place]
        torch.testing.assert_close(found, expected, **FLOAT64_ROUNDING)


def test_instance_norm_of_half_is_float32_rounded() -> None:
    x = (300 * torch.randn(2, 3, 4, 4, 2)).half()
    found = InstanceNorm3d()(x)
    assert found.dtype == torch.float16
    assert torch.equal(found, nn.InstanceNorm3d(3)(x.float()).half())


def _spectral_pair() -> tuple[nn.Module, nn.Module]:
    """Our layer and torch's, with the same weight, u and v."""
    ours, theirs = Conv3d(3, 5, kernel_size=3), nn.Conv3d(3, 5, kernel_size=3)
    theirs.load_state_dict(ours.state_dict())
    parametrizations.spectral_norm(theirs)
    parametrize.register_parametrization(ours, "weight", SpectralNorm(ours.weight))
    ours.parametrizations.weight[0].u.copy_(theirs.parametrizations.weight[0]._u)
    ours.parametrizations.weight[0].v.copy_(theirs.parametrizations.weight[0]._v)
    return ours, theirs


def test_spectral_norm_equals_torchs_over_several_forwards() -> None:
    ours, theirs = _spectral_pair()
    inputs = torch.randn(3, 2, 3, 4, 4, 4)
    with torch.no_grad():
        # A forward without graph takes its power iteration too.
        torch.testing.assert_close(ours(inputs[0]), theirs(inputs[0]))
    losses = [sum(layer(x).square().sum() for x in inputs) for layer in (ours, theirs)]
    # Float32 sums in another order.
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    gradients = [
        torch.autograd.grad(loss, layer.parametrizations.weight.original)[0]
        for loss, layer in zip(losses, (ours, theirs), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4 * gradients[1].abs().max().item())
    torch.testing.assert_close(ours.parametrizations.weight[0].u, theirs.parametrizations.weight[0]._u)
    ours.eval(), theirs.eval()
    before = ours.parametrizations.weight[0].u.clone()
    torch.testing.assert_close(ours(inputs[0]), theirs(inputs[0]))
    assert torch.equal(before, ours.parametrizations.weight[0].u)


def test_spectral_norm_of_half_differentiates_twice() -> None:
    layer = Conv3d(2, 4, kernel_size=3, padding=1)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    layer.half()
    vectors = layer.parametrizations.weight[0]
    assert layer.parametrizations.weight.original.dtype == torch.float16
    assert vectors.u.dtype == vectors.v.dtype == torch.float32
    x = torch.randn(2, 2, 4, 4, 4).half().requires_grad_(True)
    (slope,) = torch.autograd.grad(layer(x).float().square().sum(), x, create_graph=True)
    slope.float().square().sum().backward()
    assert torch.isfinite(layer.parametrizations.weight.original.grad).all()
    assert layer.parametrizations.weight.original.grad.abs().max() > 0
    for _ in range(50):
        weight = layer.weight
    sigma = torch.linalg.matrix_norm(weight.detach().float().flatten(1), ord=2)
    # Half keeps eleven bits, so the norm of the rounded weight is 1 to about one part in a thousand.
    assert sigma.item() == pytest.approx(1.0, abs=2e-3)


def test_spectral_norm_of_a_diagonal_weight() -> None:
    layer = Linear(3, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([1.0, 2.0, 4.0])))
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    for _ in range(30):
        layer(torch.ones(1, 3))
    # The second eigenvalue is half the first: its share falls fourfold per iteration.
    torch.testing.assert_close(layer.weight, torch.diag(torch.tensor([0.25, 0.5, 1.0])), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: Generator((16, 16, 16), 8, 4), [f"ups.{number}.bias" for number in range(3)]),
        (lambda: Critic((32, 16, 16), 8, "instance"), [f"convolutions.{number}.bias" for number in range(4)]),
        (lambda: Critic((16, 16, 16), 8, "spectral"), []),
    ],
)
def test_frozen_biases_stay_frozen_and_zero(build, expected) -> None:
    network = copy.deepcopy(build())
    init_weights(network, 3)
    set_trainable(network, False)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    set_trainable(network, True)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen == expected and not any(network.get_parameter(name).any() for name in frozen)


def test_a_bias_before_a_normalisation_does_nothing() -> None:
    convolution, norm = freeze_bias(Conv3d(2, 3, kernel_size=3)).double(), BatchNorm3d(3).double()
    x = torch.randn(2, 2, 4, 4, 4, dtype=torch.float64)
    before = norm(convolution(x))
    with torch.no_grad():
        convolution.bias.add_(torch.tensor([1.0, -2.0, 3.0]))
    torch.testing.assert_close(norm(convolution(x)), before, **FLOAT64_ROUNDING)


def test_the_linear_bias_does_something_and_trains() -> None:
    generator = Generator((16, 16, 16), 8, 4).double()
    z = torch.randn(3, 4, dtype=torch.float64)
    before = generator(z)
    with torch.no_grad():
        generator.start.bias.add_(torch.randn_like(generator.start.bias))
    assert (generator(z) - before).abs().max() > 1e-3
    assert generator.start.bias.requires_grad


@pytest.mark.parametrize("norm", ["instance", "spectral"])
def test_start_acts_on_every_variants_convolutions(norm: str) -> None:
    critic = Critic((32, 32, 16), 64, norm)
    before = {name: parameter.clone() for name, parameter in critic.named_parameters()}
    init_weights(critic, 5)
    weights = [
        layer.parametrizations.weight.original if norm == "spectral" else layer.weight for layer in critic.convolutions
    ]
    for weight in weights:
        # Four standard errors of the SD of n normal draws: 4 / sqrt(2 n).
        assert weight.std().item() == pytest.approx(0.05, rel=4 / math.sqrt(2 * weight.numel()))
    assert all(not torch.equal(before[name], p) for name, p in critic.named_parameters() if "bias" not in name)
    # 1 / sqrt(3 * inputs)
    inputs = critic.score.in_features
    assert critic.score.weight.std().item() == pytest.approx(1 / math.sqrt(3 * inputs), rel=4 / math.sqrt(2 * inputs))


def test_one_seed_gives_one_start() -> None:
    first, second = Critic((16, 16, 16), 16, "spectral"), Critic((16, 16, 16), 16, "spectral")
    init_weights(first, 11), init_weights(second, 11)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    init_weights(second, 12)
    assert not torch.equal(first.score.weight, second.score.weight)


def test_sigma_is_near_the_truth_at_once() -> None:
    critic = Critic((16, 16, 16), 32, "spectral")
    init_weights(critic, 1)
    for layer in critic.eval().convolutions:
        # Fifteen iterations from a random vector: within five per cent of the largest singular value, from below.
        sigma = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2).item()
        assert 1 - 1e-5 <= sigma <= 1.05


@pytest.mark.parametrize(
    ("shape", "norm", "named"),
    [
        ((100, 96, 50), "spectral", ["[96, 96, 48]", "[112, 96, 64]"]),
        ((8, 32, 32), "spectral", ["[16, 32, 32]"]),
        ((16, 16, 16), "instance", ["[32, 16, 16]"]),
        ((17, 16, 16), "instance", ["[32, 16, 16]"]),
        ((32, 32), "spectral", ["[128, 128, 64]"]),
        ((0, 32, 32), "spectral", ["[128, 128, 64]"]),
    ],
)
def test_sizes_that_cannot_work_name_sizes_that_do(shape, norm: str, named: list[str]) -> None:
    with pytest.raises(UsageError, match="patch_shape") as caught:
        check_patch_shape(shape, norm)
    assert all(size in str(caught.value) for size in named)
    for size in named:
        check_patch_shape(tuple(int(side) for side in size.strip("[]").split(",")), norm)
