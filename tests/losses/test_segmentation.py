import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vesselgan.losses.segmentation import LOSSES, dice_ce_loss, dice_loss, soft_dice


def test_loss_of_a_hand_made_case():
    probability, label = torch.tensor([0.5, 1.0, 0.0, 0.5]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    # overlap 1.5, sums 2 and 2: -(3 + 1) / (4 + 1)
    assert dice_loss(probability, label).item() == pytest.approx(-0.8)


def test_a_perfect_prediction_costs_minus_one():
    for label in [torch.ones(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4)]:
        assert dice_loss(label, label).item() == -1.0


def test_gradient_is_the_closed_form():
    probability = torch.tensor([0.2, 0.7, 0.4], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0.0, 1.0, 1.0])
    dice_loss(probability, label).backward()
    top, bottom = 2 * 1.1 + 1, 1.3 + 2 + 1
    expected = [-(2 * y * bottom - top) / bottom**2 for y in (0.0, 1.0, 1.0)]
    torch.testing.assert_close(probability.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_cross_entropy_of_a_hand_made_case():
    probability, label = torch.tensor([0.5, 0.8, 0.1, 0.5]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    entropy = -(math.log(0.5) + math.log(0.8) + math.log(0.9) + math.log(0.5)) / 4
    assert dice_ce_loss(probability, label).item() == pytest.approx(dice_loss(probability, label).item() + entropy)


def test_gradient_of_cross_entropy_is_probability_minus_label():
    logit = torch.tensor([-1.5, 0.3, 2.0], requires_grad=True)
    label = torch.tensor([0.0, 1.0, 0.0])
    (dice_ce_loss(logit.sigmoid(), label) - dice_loss(logit.sigmoid(), label)).backward()
    torch.testing.assert_close(logit.grad, (logit.detach().sigmoid() - label) / 3, rtol=1e-5, atol=1e-6)


def test_certain_mistakes_have_a_finite_gradient():
    logit = torch.tensor([200.0, -200.0], requires_grad=True)
    loss = dice_ce_loss(logit.sigmoid(), torch.tensor([0.0, 1.0]))
    loss.backward()
    assert 10 < loss.item() < 20 and logit.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES.values())
def test_a_nan_probability_makes_a_nan_loss(loss):
    # Not an error: the trainer skips such steps, counts them, and ends the run when they do not end.
    assert loss(torch.tensor([0.5, torch.nan]), torch.tensor([1.0, 0.0])).isnan()


def test_the_batch_counts_as_one_volume():
    probability, label = torch.tensor([[0.9, 0.1], [0.3, 0.3]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert dice_loss(probability, label) == dice_loss(probability.flatten(), label.flatten())
    assert soft_dice(torch.tensor([0.9, 1.6, 1.0])).item() == pytest.approx(2.8 / 3.6)


def test_bfloat16_is_summed_in_float32():
    ones = torch.ones(1000, dtype=torch.bfloat16)  # in bfloat16 a sum of ones stops at 256
    assert dice_loss(ones, ones).item() == -1.0


def rank_main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    probability, label = pair()
    found = {}
    for name, of in LOSSES.items():
        mine = probability[rank : rank + 1].clone().requires_grad_(True)
        loss = of(mine, label[rank : rank + 1])
        loss.backward()
        found[name] = (loss.detach(), mine.grad)
    torch.save(found, folder / f"rank_{rank}.pt")
    dist.destroy_process_group()


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 10, generator=generator), (torch.rand(2, 10, generator=generator) > 0.7).float()


def test_two_ranks_equal_the_joined_batch(tmp_path):
    mp.start_processes(rank_main, (tmp_path,), nprocs=2, start_method="forkserver")
    for name, of in LOSSES.items():
        probability, label = pair()
        loss = of(probability.requires_grad_(True), label)
        loss.backward()
        for rank in range(2):
            found, gradient = torch.load(tmp_path / f"rank_{rank}.pt")[name]
            torch.testing.assert_close(found, loss.detach(), rtol=1e-6, atol=0)
            # Ranks' gradients are averaged by the optimizer, hence half of each rank's.
            torch.testing.assert_close(gradient[0] / 2, probability.grad[rank], rtol=1e-5, atol=0)
