"""Muon against torch's where a matrix is one, and Adam for the rest."""

import pytest
import torch
from torch import nn

from vesselgan.runtime.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (16, 16)])
def test_orthogonalised_keeps_singular_vectors(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalised(matrix) @ v.T
    # The polynomial, five times, of singular values from 0.003 to 1 of the norm.
    assert inside.diagonal().min() > 0.68 and inside.diagonal().max() < 1.21
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-6


def test_a_first_step_by_hand():
    """One row: the orthogonalised gradient is its direction, times a number that the polynomial decides."""
    row, bias = nn.Parameter(torch.zeros(1, 4)), nn.Parameter(torch.zeros(2))
    row.grad, bias.grad = torch.tensor([[3.0, 4.0, 0.0, 0.0]]), torch.tensor([5.0, -7.0])
    Muon([row], [bias], matrix_lr=0.1, lr=0.01, betas=(0.9, 0.99)).step()
    length = 1.0
    for _ in range(5):
        length = 3.4445 * length - 4.7750 * length**3 + 2.0315 * length**5
    assert row[0].tolist() == pytest.approx([-0.06 * length, -0.08 * length, 0.0, 0.0], rel=1e-5)
    assert bias.tolist() == pytest.approx([-0.01, 0.01], rel=1e-5)


def test_others_equal_torchs_adam():
    generator = torch.Generator().manual_seed(0)
    matrix = nn.Parameter(torch.randn(5, 3, 2, generator=generator))
    ours = nn.Parameter(torch.randn(7, generator=generator))
    theirs = nn.Parameter(ours.detach().clone())
    muon = Muon([matrix], [ours], matrix_lr=0.02, lr=1e-3, betas=(0.9, 0.99))
    adam = torch.optim.Adam([theirs], lr=1e-3, betas=(0.9, 0.99), fused=True)
    for _ in range(5):
        matrix.grad, ours.grad = (torch.randn(p.shape, generator=generator) for p in (matrix, ours))
        theirs.grad = ours.grad.clone()
        muon.step(), adam.step()
    assert torch.equal(ours, theirs) and set(muon.state[matrix]) == {"step", "exp_avg"}


def test_a_convolution_equals_torchs_matrix():
    """torch has Muon for two-dimensional weights since 2.9, in bfloat16, so the directions agree roughly."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.zeros(8, 2, 3, 3))
    theirs = nn.Parameter(torch.zeros(8, 18))
    muon = Muon([ours], [], matrix_lr=0.02, lr=1e-3, betas=(0.9, 0.99))
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, adjust_lr_fn="original")
    for _ in range(3):
        ours.grad = torch.randn(ours.shape, generator=generator)
        theirs.grad = ours.grad.flatten(1).clone()
        muon.step(), reference.step()
    cosine = torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
    assert cosine > 0.999 and ours.norm().item() == pytest.approx(theirs.norm().item(), rel=0.02)
