import torch

from vesselgan.losses.hinge import hinge_critic_loss


def test_margins_are_one_either_way() -> None:
    # max(0, 1 - 0.5), max(0, 1 - 3) -> 0.25; max(0, 1 - 0.5), max(0, 1 - 2) -> 0.25
    assert hinge_critic_loss(torch.tensor([0.5, 3.0]), torch.tensor([-0.5, -2.0])).item() == 0.5


def test_beyond_the_margin_there_is_no_gradient() -> None:
    real, fake = torch.tensor([0.0, 1.5], requires_grad=True), torch.tensor([0.0, -1.5], requires_grad=True)
    hinge_critic_loss(real, fake).backward()
    assert real.grad is not None and fake.grad is not None
    assert (real.grad.tolist(), fake.grad.tolist()) == ([-0.5, 0.0], [0.5, 0.0])
