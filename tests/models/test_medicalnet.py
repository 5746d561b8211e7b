"""The feature network against a restatement of it, and against files that are not its own."""

import pytest
import torch
from monai.networks.nets.resnet import resnet10
from torch.nn import functional

from vesselgan.core.errors import DataError
from vesselgan.models.medicalnet import ResNet10, init_weights_randomly, load_weights


def random_network(seed: int = 0) -> ResNet10:
    """Random weights, and batch norms that do something."""
    network = ResNet10().eval().requires_grad_(False)
    init_weights_randomly(network, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, value in network.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            if value.is_floating_point():
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return network


def dilated(hidden: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """A 3 x 3 x 3 convolution at stride 1 as the plain convolution with a kernel that has zeros in between."""
    side = 2 * dilation + 1
    spread = torch.zeros(*weight.shape[:2], side, side, side)
    spread[:, :, ::dilation, ::dilation, ::dilation] = weight
    return functional.conv3d(hidden, spread, padding=dilation)


def restated(state: dict[str, torch.Tensor], patch: torch.Tensor) -> torch.Tensor:
    """MedicalNet's ResNet-10 written out from its tensors: stages 2 strides, 3 and 4 dilate by 2 and 4."""

    def norm(hidden: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"].view(1, -1, 1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (hidden - mean) / torch.sqrt(var + 1e-5) * weight + bias

    hidden = functional.conv3d(patch, state["conv1.weight"], stride=2, padding=3)
    hidden = functional.max_pool3d(norm(hidden, "bn1").relu(), 3, stride=2, padding=1)
    for stage, dilation in ((1, 1), (2, 1), (3, 2), (4, 4)):
        name, step = f"layer{stage}.0", 2 if stage == 2 else 1
        around = hidden
        if stage > 1:
            around = functional.conv3d(hidden, state[f"{name}.downsample.0.weight"], stride=step)
            around = norm(around, f"{name}.downsample.1")
        inner = dilated(hidden, state[f"{name}.conv1.weight"], dilation)[:, :, ::step, ::step, ::step]
        inner = norm(inner, f"{name}.bn1").relu()
        hidden = (norm(dilated(inner, state[f"{name}.conv2.weight"], dilation), f"{name}.bn2") + around).relu()
    return hidden.mean(dim=(2, 3, 4))


@pytest.fixture(scope="module")
def patch() -> torch.Tensor:
    return torch.randn((2, 1, 24, 24, 16), generator=torch.Generator().manual_seed(3))


def test_it_equals_its_restatement(patch):
    network = random_network()
    expected = restated(network.state_dict(), patch)
    # 1e-4 of the largest: float32 sums over up to 13,824 products in another order.
    assert torch.allclose(network(patch), expected, atol=1e-4 * float(expected.abs().max()))
    assert network(patch).shape == (2, 512)


def test_it_equals_monais_once_that_dilates(patch):
    ours = random_network(5)
    options = {"spatial_dims": 3, "n_input_channels": 1, "conv1_t_stride": 2, "feed_forward": False}
    theirs = resnet10(**options, shortcut_type="B", bias_downsample=False).eval()
    load = theirs.load_state_dict(ours.state_dict(), strict=True)  # its keys say nothing
    assert not load.missing_keys
    with torch.inference_mode():
        as_it_is = theirs(patch)
        for stage, dilation in ((theirs.layer3[0], 2), (theirs.layer4[0], 4)):
            stage.conv1.stride = stage.downsample[0].stride = (1, 1, 1)
            for convolution in (stage.conv1, stage.conv2):
                convolution.dilation = convolution.padding = (dilation,) * 3
        found = ours(patch)
        # 1e-5 of the largest: the same kernels; only the pooling sums in another order.
        assert torch.allclose(found, theirs(patch), atol=1e-5 * float(found.abs().max()))
    assert float((as_it_is - found).norm() / found.norm()) > 0.05


def test_it_has_the_published_tensors():
    state = ResNet10().state_dict()
    assert (len(state), sum(value.numel() for value in state.values())) == (72, 14_361_292)
    assert not any("downsample.0.bias" in name for name in state)


def test_seeded_weights_are_the_same_again():
    first, again, other = (ResNet10() for _ in range(3))
    for network, seed in ((first, 1), (again, 1), (other, 2)):
        init_weights_randomly(network, seed)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    # He by fan-out: variance 2 / (64 * 343), from 21,952 numbers, whose own spread is 1 %.
    assert float(first.conv1.weight.detach().var()) == pytest.approx(2 / (64 * 343), rel=0.05)


def test_weights_load_with_and_without_the_wrapping(patch):
    source = random_network(7)
    state = source.state_dict()
    for content in (state, {"state_dict": state}, {"state_dict": {f"module.{k}": v for k, v in state.items()}}):
        network = ResNet10().eval()
        load_weights(network, content, "file")
        assert torch.equal(network(patch[:1]), source(patch[:1]))


def test_another_architecture_is_refused_by_key():
    state = random_network().state_dict()
    network = ResNet10()
    before = network.conv1.weight.clone()
    others = {
        "layer4.0.conv1.weight": {name: value for name, value in state.items() if not name.startswith("layer4")},
        "layer1.1.conv1.weight": state | {"module.layer1.1.conv1.weight": state["conv1.weight"]},
        "conv1.weight": state | {"conv1.weight": torch.zeros(64, 3, 7, 7, 7)},
        "bn1.bias": state | {"bn1.bias": torch.full((64,), torch.nan)},
    }
    for key, content in others.items():
        with pytest.raises(DataError, match=rf"other.pth.*\b{key}"):
            load_weights(network, content, "other.pth")
    for content in ([1, 2], {"state_dict": 3}, {"epoch": 7}, {"conv1.weight": [0.0]}):
        with pytest.raises(DataError, match="other.pth"):
            load_weights(network, content, "other.pth")
    assert torch.equal(network.conv1.weight, before)  # none of it was taken
