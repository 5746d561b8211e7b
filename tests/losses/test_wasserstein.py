import torch

from vesselgan.losses.wasserstein import critic_loss, generator_loss


def test_the_critic_wants_real_above_fake() -> None:
    # (3 + 5) / 2 - (1 + 2) / 2 = 2.5
    assert critic_loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])).item() == 2.5


def test_the_generator_wants_its_fakes_high() -> None:
    assert generator_loss(torch.tensor([3.0, 5.0])).item() == -4.0


def test_the_gradients_are_one_over_n() -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    critic_loss(real, fake).backward()
    assert real.grad.tolist() == [-0.25] * 4
    assert fake.grad.tolist() == [0.25] * 4
