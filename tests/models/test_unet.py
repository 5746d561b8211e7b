import pytest
import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import nn

from vesselgan.core.errors import UsageError
from vesselgan.models.blocks import Conv3d
from vesselgan.models.unet import LEVELS, ResidualLevel, Unet, UpsampleConcatConv3d, check_unet_shape, init_unet_weights


def small_unet(dropout: float = 0.0, filters: tuple[int, ...] = (4, 6, 8), network: str = "hilbert") -> Unet:
    unet = Unet(filters, dropout, network=network)
    init_unet_weights(unet, 7)
    return unet


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 255


def test_the_papers_network_has_5_970_435_parameters():
    # A level a -> b: 27ab + b, scale and shift 2b, 27bb + b, 2b.
    expected = 2  # scale and shift of the input's normalisation
    expected += 896 + 64 + 27_680 + 64  # 1 -> 32
    expected += 55_360 + 128 + 110_656 + 128  # 32 -> 64
    expected += 221_312 + 256 + 442_496 + 256  # 64 -> 128
    expected += 884_992 + 512 + 1_769_728 + 512  # 128 -> 256
    expected += 2 * 65_792  # two 1x1x1, 256 -> 256
    expected += 1_327_232 + 256 + 442_496 + 256  # 256 + 128 -> 128
    expected += 331_840 + 128 + 110_656 + 128  # 128 + 64 -> 64
    expected += 82_976 + 64 + 27_680 + 64  # 64 + 32 -> 32
    expected += 33  # 1x1x1, 32 -> 1
    with torch.device("meta"):
        unet = Unet([32, 64, 128, 256], 0.1)
    assert sum(parameter.numel() for parameter in unet.parameters()) == expected == 5_970_435


def test_equals_the_published_layers_written_out():
    """The same network from torch's own layers, channels first in memory."""
    unet = small_unet(filters=(4, 6)).train()
    plain = nn.ModuleDict(
        {
            "norm": nn.BatchNorm3d(1),
            "pool": nn.MaxPool3d(2),
            "down0": plain_level(1, 4),
            "down1": plain_level(4, 6),
            "bottom": nn.Sequential(nn.Conv3d(6, 6, 1), nn.ReLU(), nn.Conv3d(6, 6, 1), nn.ReLU()),
            "twice": nn.Upsample(scale_factor=2, mode="nearest"),
            "up": plain_level(10, 4),
            "last": nn.Sequential(nn.Conv3d(4, 1, 1), nn.Sigmoid()),
        }
    )
    with torch.no_grad():
        for mine, theirs in zip(unet.parameters(), in_order(plain), strict=True):
            theirs.copy_(mine)
    x = image(2, 1, 8, 4, 6)
    top = plain["down0"](plain["norm"](x))
    low = plain["bottom"](plain["down1"](plain["pool"](top)))
    expected = plain["last"](plain["up"](torch.cat([plain["twice"](low), top], dim=1)))
    found = unet(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # other memory layout, other order of sums
    (found**2).sum().backward()
    (expected**2).sum().backward()
    for (name, mine), theirs in zip(unet.named_parameters(), in_order(plain), strict=True):
        if name == "input_norm.weight":  # kept at one: the first level's normalisation undoes it
            assert mine.grad is None and theirs.grad.abs() < 1e-3
            continue
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def plain_level(i: int, o: int) -> nn.Sequential:
    first = [nn.Conv3d(i, o, 3, padding=1), nn.ReLU(), nn.BatchNorm3d(o)]
    return nn.Sequential(*first, nn.Conv3d(o, o, 3, padding=1), nn.ReLU(), nn.BatchNorm3d(o))


def in_order(plain: nn.ModuleDict) -> list[nn.Parameter]:
    names = ["norm", "down0", "down1", "bottom", "up", "last"]
    return [parameter for name in names for parameter in plain[name].parameters()]


@pytest.mark.parametrize(("i", "o"), [(3, 5), (4, 4)])
def test_a_residual_level_is_monais_block(i, o):
    mine, theirs = ResidualLevel(Conv3d(i, o, kernel_size=3, padding=1), o, 0.0), UnetResBlock(3, i, o, 3, 1, "batch")
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        pairs = [(mine.first, theirs.conv1.conv), (mine.second, theirs.conv2.conv)]
        pairs += [(mine.first_norm, theirs.norm1), (mine.second_norm, theirs.norm2)]
        if i != o:
            pairs += [(mine.shortcut[0], theirs.conv3.conv), (mine.shortcut[1], theirs.norm3)]
        for ours, other in pairs:
            for name, value in other.named_parameters():
                getattr(ours, name).copy_(value)
    x = image(2, i, 4, 6, 8) / 255
    found, expected = mine.train()(x), theirs.train()(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (found**2).sum().backward()
    (expected**2).sum().backward()
    for ours, other in pairs:
        torch.testing.assert_close(ours.weight.grad, other.weight.grad, rtol=1e-3, atol=1e-3)


def test_a_residual_level_adds_the_skip():
    level = ResidualLevel(UpsampleConcatConv3d(6, 4), 4, 0.0)
    nn.init.zeros_(level.second_norm.weight)  # nothing comes of the convolutions
    low, skip = torch.randn(2, 6, 2, 2, 2), torch.randn(2, 4, 4, 4, 4)
    assert torch.equal(level(low, skip), torch.where(skip > 0, skip, skip * 0.01))


def test_no_residual_convolution_trains_its_bias():
    unet = small_unet(network="residual")
    unet(image(1, 1, 8, 8, 8)).sum().backward()
    for level in [*unet.downs, *unet.ups]:
        for part in level.modules():
            assert not isinstance(part, Conv3d) or (part.bias.grad is None and not part.bias.any())


@pytest.mark.parametrize("network", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_trains_in_every_precision(dtype, network):
    unet = small_unet(dropout=0.1, network=network).to(dtype).train()
    probability = unet(image(2, 1, 16, 8, 8))
    assert probability.shape == (2, 1, 16, 8, 8)
    assert probability.dtype == torch.float32  # the loss sums thousands of them
    assert 0 <= probability.min() < probability.max() <= 1
    probability.mean().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.dtype == dtype
        assert not parameter.requires_grad or torch.isfinite(parameter.grad).all(), name
    assert unet.input_norm.running_mean.dtype == torch.float32


@pytest.mark.parametrize("network", LEVELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_agrees_with_float32(dtype, tolerance, network):
    # 8 and 11 bits of mantissa through 12 layers; a wrong layer differs by the whole range.
    exact, half = small_unet(network=network).eval(), small_unet(network=network).to(dtype).eval()
    x = image(1, 1, 16, 16, 8)
    with torch.no_grad():
        exact.train()(x)  # statistics of its own, so that activations are of order 1
        half.load_state_dict(exact.state_dict())
        assert (exact.eval()(x) - half.eval()(x)).abs().max() < tolerance


@pytest.mark.parametrize("network", LEVELS)
def test_brightness_and_contrast_do_not_matter(network):
    unet = small_unet(network=network).train()
    x = image(2, 1, 8, 8, 8)
    # BatchNorm on the input: any scale and offset of the batch go. Its epsilon is 1e-5 of a variance of thousands.
    torch.testing.assert_close(unet(x), unet(x * 0.5 + 20), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", LEVELS)
def test_in_evaluation_samples_ignore_their_batch(network):
    unet = small_unet(dropout=0.5, network=network)
    unet.train()(image(4, 1, 8, 8, 8))
    unet.eval()
    x = image(3, 1, 8, 8, 8, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(unet(x)[1:2], unet(x[1:2]), rtol=1e-5, atol=1e-6)  # order of sums


@pytest.mark.parametrize("network", LEVELS)
def test_dropout_acts_in_training_alone(network):
    unet = small_unet(dropout=0.5, network=network)
    x = image(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert not torch.equal(unet.train()(x), unet(x))
        assert torch.equal(unet.eval()(x), unet(x))


def test_one_seed_gives_one_start():
    first, second, other = small_unet(), small_unet(), Unet([4, 6, 8], 0.0)
    init_unet_weights(other, 8)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.downs[0].first.weight, other.downs[0].first.weight)
    # Glorot: uniform up to sqrt(6 / (27 * (4 + 4))) = 1/6 in the first level's second convolution.
    weight = first.downs[0].second.weight
    assert 0.95 / 6 < weight.abs().max() <= 1 / 6
    assert not first.downs[0].second.bias.any()


def test_a_patch_that_does_not_halve_is_refused():
    check_unet_shape((32, 32, 16), [8, 16, 32])
    with pytest.raises(UsageError, match=r"\[128, 128, 64\]"):
        check_unet_shape((128, 128, 62), [32, 64, 128, 256])
