"""Adam without momentum is torch's Adam with beta1 = 0, to the bit."""

import pytest
import torch
from torch import nn

from vesselgan.runtime.adam import AdamWithoutMomentum


def test_one_step_by_hand():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    weight.grad = torch.tensor([0.5, -4.0])
    AdamWithoutMomentum([weight], lr=0.1, beta2=0.9).step()
    # v / (1 - 0.9) = g^2, so every weight moves by lr against its gradient's sign; eps takes one part in 10^8.
    assert weight.tolist() == pytest.approx([0.9, -1.9], rel=1e-6)


def test_twenty_steps_equal_torchs_fused_adam():
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((1003,), (7, 5, 3))]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    lean = AdamWithoutMomentum(ours, lr=4e-4, beta2=0.9)
    full = torch.optim.Adam(theirs, lr=4e-4, betas=(0.0, 0.9), fused=True)
    for _ in range(20):
        for mine, its in zip(ours, theirs, strict=True):
            # gradients over many orders of magnitude
            mine.grad = torch.randn(mine.shape, generator=generator) * 10 ** (
                3 * torch.randn(mine.shape, generator=generator)
            )
            its.grad = mine.grad.clone()
        before = [parameter.grad.clone() for parameter in ours]
        lean.step(), full.step()
        assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(ours, before, strict=True))
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.equal(mine, its)
        assert torch.equal(lean.state[mine]["exp_avg_sq"], full.state[its]["exp_avg_sq"])
        assert "exp_avg" not in lean.state[mine]


def test_a_parameter_without_gradient_stays():
    moved, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    moved.grad = torch.ones(2)
    optimizer = AdamWithoutMomentum([moved, still], lr=0.1, beta2=0.9)
    optimizer.step()
    assert still.tolist() == [1.0, 1.0] and still not in optimizer.state and moved.tolist() != [1.0, 1.0]
