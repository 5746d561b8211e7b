"""Normalisation, ReLU and convolution in one: exact, on one rank and two, and lean."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from vesselgan.models import norm_relu
from vesselgan.models.blocks import BatchNorm3d, NarrowConv3d
from vesselgan.models.norm_relu import norm_relu_convolution
from vesselgan.models.upsampling import UpsampleConv3d

# Sums of some hundred float64 products of order one, added in another order.
FLOAT64_ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
JOINT = 6


def parts(kind: type[nn.Module] = UpsampleConv3d) -> tuple[BatchNorm3d, nn.Module, Tensor]:
    """A normalisation away from its start, a convolution behind it, an input; float64."""
    torch.manual_seed(3)
    norm, convolution = BatchNorm3d(5).double(), kind(5, 3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0, 0.1, 1.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, -0.3, 0.0, 0.4]))
    return norm, convolution, 3 * torch.randn(JOINT, 5, 4, 2, 6, dtype=torch.float64) + 5


def gradients(y: Tensor, norm: BatchNorm3d, convolution: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, (x, *norm.parameters(), *convolution.parameters()), upstream))


@pytest.mark.parametrize("kind", [UpsampleConv3d, NarrowConv3d])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_value_gradients_and_statistics_equal_three_steps(kind: type[nn.Module], layout: torch.memory_format) -> None:
    norm, convolution, x = parts(kind)
    plain_norm, plain_convolution = copy.deepcopy((norm, convolution))
    x = x.contiguous(memory_format=layout).requires_grad_(True)
    found = norm_relu_convolution(norm, x, convolution)
    expected = plain_convolution(F.relu(plain_norm(x)))
    torch.testing.assert_close(found, expected, **FLOAT64_ROUNDING)
    upstream = torch.randn_like(expected)
    ours = gradients(found, norm, convolution, x, upstream)
    theirs = gradients(expected, plain_norm, plain_convolution, x, upstream)
    for gradient, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, exact, **FLOAT64_ROUNDING)
    assert norm.num_batches == 1
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(buffer, plain_norm.get_buffer(name), **FLOAT64_ROUNDING)


def test_without_a_graph_it_is_three_steps() -> None:
    norm, convolution, x = parts()
    plain_norm = copy.deepcopy(norm)
    with torch.no_grad():
        assert torch.equal(norm_relu_convolution(norm, x, convolution), convolution(plain_norm(x).relu()))
    assert norm.num_batches == 1
    norm.eval(), plain_norm.eval()
    x.requires_grad_(True)
    ours, theirs = norm_relu_convolution(norm, x, convolution), convolution(F.relu(plain_norm(x)))
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs)))


def test_the_convolutions_input_is_rebuilt_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made, packed = [], []
    make, pack = norm_relu._Recomputed.compute, norm_relu._Recomputed.pack
    monkeypatch.setattr(norm_relu._Recomputed, "compute", lambda self: made.append(self) or make(self))
    monkeypatch.setattr(
        norm_relu._Recomputed, "pack", lambda self, saved: packed.append(pack(self, saved)) or packed[-1]
    )
    norm, convolution, x = parts()
    loss = norm_relu_convolution(norm, x.requires_grad_(True), convolution).square().sum()
    sizes = [saved.numel() for saved in packed if isinstance(saved, Tensor)]
    assert any(isinstance(saved, norm_relu._Recomputed) for saved in packed) and x.numel() not in sizes and not made
    loss.backward()
    assert len(made) == 1
    # A loss that is kept, for the log, holds no activation.
    assert made[0].inputs == () and made[0].y_NCXYZ is None
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_gives_what_three_steps_give(dtype: torch.dtype) -> None:
    norm, convolution, x = parts()
    norm, convolution, x = norm.float().to(dtype), convolution.to(dtype), x.to(dtype).requires_grad_(True)
    plain_norm = copy.deepcopy(norm)
    found, expected = norm_relu_convolution(norm, x, convolution), convolution(F.relu(plain_norm(x)))
    assert found.dtype == dtype and torch.equal(found, expected)
    upstream = torch.randn_like(expected)
    ours = gradients(found, norm, convolution, x, upstream)
    theirs = gradients(expected, plain_norm, convolution, x, upstream)
    for gradient, exact in zip(ours, theirs, strict=True):
        # What is rebuilt may round the other way in its last place, here and there.
        scale = torch.finfo(dtype).eps * exact.abs().max().item()
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, exact, rtol=0, atol=4 * scale)


def _found(part: slice) -> list[Tensor]:
    """Of these samples: values, their gradients, running statistics, the parameters' gradients."""
    norm, convolution, x = parts()
    shape = (len(x), 3, *(2 * side for side in x.shape[2:]))
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mine = x[part].clone().requires_grad_(True)
    y = norm_relu_convolution(norm, mine, convolution)
    dx, *dparameters = gradients(y, norm, convolution, mine, upstream[part])
    return [y.detach(), dx, norm.running_mean, norm.running_var, *dparameters]


def _one_part(rank: int, folder: Path) -> None:
    """A rank's share, unevenly divided: 2 samples for rank 0, 4 for rank 1."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(_found(slice(0, 2) if rank == 0 else slice(2, JOINT)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_the_joined_batch(tmp_path) -> None:
    mp.start_processes(_one_part, (tmp_path,), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for place, expected in enumerate(_found(slice(0, JOINT))):
        if place < 2:
            found = torch.cat([first[place], second[place]])
        elif place < 4:
            assert torch.equal(first[place], second[place])
            found = first[place]
        else:  # each rank holds its part of the parameters' gradients
            found = first[place] + second[place]
        torch.testing.assert_close(found, expected, **FLOAT64_ROUNDING)
