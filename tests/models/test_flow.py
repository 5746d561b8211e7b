"""The velocity network, its sampler and the places of samples."""

import pytest
import torch

from vesselgan.core.errors import UsageError
from vesselgan.models.flow import NUM_BINS, FlowGenerator, Sampling, init_flow_weights, shifted_times

SHAPE = (16, 8, 4)


def flow(**changes) -> FlowGenerator:
    settings = {"has_position": True, "time_shift": 2.0, "num_steps": 3, "guidance": 0.0} | changes
    network = FlowGenerator(SHAPE, 8, **settings)
    init_flow_weights(network, 0)
    return network.eval()


def moved(network: FlowGenerator) -> FlowGenerator:
    """With weights that are zero nowhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("num_steps", [1, 7])
def test_a_known_patch_is_reached_exactly(num_steps):
    """Whose denoised patch is the same everywhere on the path: the path is straight."""
    network = flow(num_steps=num_steps)
    patch_CXYZ = torch.rand(2, *SHAPE)
    network.denoised = lambda x, time, position: patch_CXYZ.expand_as(x)  # type: ignore[method-assign]
    image, label = network(torch.randn(2, network.latent_size)).unbind(1)
    torch.testing.assert_close(image, patch_CXYZ[0].expand_as(image))
    torch.testing.assert_close(label, (patch_CXYZ[1].expand_as(label) + 1) / 2)


MEAN, SD = 0.1, 0.3


def normal_patches(num_steps, guidance=0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and the image sampled from it, of a flow that knows patches to be normal with MEAN and SD."""

    def denoised(x_NCXYZ, time_N, position_N3):
        t = time_N.view(-1, 1, 1, 1, 1)
        share = (1 - t) * SD**2 / (((1 - t) * SD) ** 2 + t**2)
        return MEAN + share * (x_NCXYZ - (1 - t) * MEAN)

    network = flow(num_steps=num_steps, guidance=guidance).double()
    network.denoised = denoised  # type: ignore[method-assign]
    z_NL = torch.linspace(-1, 1, network.latent_size, dtype=torch.float64)[None]
    return z_NL[:, : network.num_voxels].view(2, *SHAPE)[0], network(z_NL)[0, 0]


def test_few_steps_are_nearly_exact():
    """A sample of normal patches is its noise, scaled and shifted."""
    for num_steps, largest in ((12, 0.01), (48, 0.0025)):  # 0.045 and 0.012 for plain Euler steps
        noise, image = normal_patches(num_steps)
        assert (image - (MEAN + SD * noise)).abs().max() < largest


def test_guidance_widens_about_the_mean():
    noise, image = normal_patches(24, guidance=0.2)
    ratio = (image - MEAN) / (SD * noise)
    assert (ratio > 1.05).all() and (ratio < 1.4).all()


def test_sample_does_not_depend_on_its_batch():
    network = moved(flow())
    z_NL = torch.randn(4, network.latent_size)
    with torch.no_grad():
        torch.testing.assert_close(network(z_NL)[2:3], network(z_NL[2:3]), atol=1e-5, rtol=0)


def test_denoising_depends_on_time_and_place():
    network, x = moved(flow()), torch.randn(1, 2, *SHAPE)
    here = network.denoised(x, torch.tensor([0.5]), torch.zeros(1, 3))
    assert not torch.allclose(here, network.denoised(x, torch.tensor([0.6]), torch.zeros(1, 3)))
    assert not torch.allclose(here, network.denoised(x, torch.tensor([0.5]), torch.ones(1, 3)))


def test_places_are_as_frequent_as_in_training():
    network = flow()
    position_N3 = torch.tensor([[-1.0, 0.1, 1.0]] * 3 + [[0.9, 0.9, -0.9]])
    network.count_positions(position_N3)
    drawn_N3 = network.positions(torch.randn(4000, 4, generator=torch.Generator().manual_seed(3)))
    is_first = drawn_N3[:, 0] < 0
    assert is_first.float().mean().item() == pytest.approx(0.75, abs=0.03)
    low, high = drawn_N3[is_first].amin(0), drawn_N3[is_first].amax(0)
    width = 2 / NUM_BINS
    assert ((high - low) <= width).all() and ((high - low) > 0.9 * width).all()
    assert ((low >= torch.tensor([-1.0, 0.0, 1 - width])) & (high <= torch.tensor([width - 1, width, 1.0]))).all()


def test_shift_draws_times_towards_noise():
    u = torch.tensor([0.0, 0.5, 1.0])
    assert shifted_times(u, 1.0).tolist() == [0.0, 0.5, 1.0]
    assert shifted_times(u, 2.0).tolist() == pytest.approx([0.0, 2 / 3, 1.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_agrees_with_float32(dtype):
    network = moved(flow())
    x, time, place = torch.randn(2, 2, *SHAPE), torch.tensor([0.1, 0.9]), torch.zeros(2, 3)
    expected = network.denoised(x, time, place)
    denoised = network.to(dtype).denoised(x, time, place)
    assert denoised.dtype == torch.float32
    assert (denoised - expected).abs().max() < 0.1 * expected.abs().max()  # eight bits through twenty layers


def test_activations_do_not_grow_from_block_to_block():
    network = FlowGenerator((16, 16, 16), 8, has_position=True, time_shift=1.0, num_steps=1, guidance=0.0)
    init_flow_weights(network, 0)
    largest = []
    network.last_norm.register_forward_pre_hook(lambda _, inputs: largest.append(inputs[0].detach().abs().max()))
    arguments = torch.randn(2, 2, 16, 16, 16), torch.tensor([0.3, 0.9]), torch.zeros(2, 3)
    network.denoised(*arguments)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "shortcut" in name or "lifts" in name:
                parameter.mul_(100)
    network.denoised(*arguments)
    assert largest[1] < 101 * largest[0]


def test_odd_patch_is_refused():
    with pytest.raises(UsageError, match="patch_shape"):
        FlowGenerator((16, 16, 15), 8, has_position=False, time_shift=1.0, num_steps=1, guidance=0.0)


def test_times_are_a_power_of_equal_steps():
    assert Sampling(4, 1.0, 0.0).times == [1, 0.75, 0.5, 0.25, 0]
    assert Sampling(4, 2.0, 0.0).times == [1, 0.5625, 0.25, 0.0625, 0]


def test_a_given_label_passes_unchanged():
    network = moved(flow(num_given=1))
    assert network.latent_size == 16 * 8 * 4 + 4
    label_N1XYZ = (torch.rand(2, 1, *SHAPE) > 0.5).float()
    z_NL = torch.randn(2, network.latent_size)
    with torch.no_grad():
        sample_NCXYZ = network(z_NL, label_N1XYZ)
        other_NCXYZ = network(z_NL, 1 - label_N1XYZ)
    assert torch.equal(sample_NCXYZ[:, 1:], label_N1XYZ)
    assert not torch.allclose(sample_NCXYZ[:, 0], other_NCXYZ[:, 0])


def test_a_given_tissue_map_shapes_the_image():
    network = moved(flow(num_given=2))
    given_N2XYZ, z_NL = torch.zeros(2, 2, *SHAPE), torch.randn(2, network.latent_size)
    with torch.no_grad():
        sample_NCXYZ = network(z_NL, given_N2XYZ)
        given_N2XYZ[:, 1] = 1
        other_NCXYZ = network(z_NL, given_N2XYZ)
    assert sample_NCXYZ.shape == (2, 2, *SHAPE) and (sample_NCXYZ[:, 1] == 0).all()
    assert not torch.allclose(sample_NCXYZ[:, 0], other_NCXYZ[:, 0])


def test_noise_does_not_reach_a_given_label():
    patch, point = torch.zeros(1, 2, *SHAPE), torch.ones(1, 2, *SHAPE)
    given = flow(num_given=1).with_given(point, patch)
    assert (given[:, 0] == 1).all() and (given[:, 1] == 0).all()
    assert flow().with_given(point, patch) is point


def test_neighbours_know_one_place_alike():
    """Two patches half a patch apart: where they overlap, their voxels have the same place."""
    network, extent_3 = flow(num_given=1), torch.tensor([0.2, 0.5, 1.0])
    here = network._places(torch.tensor([[-0.3, 0.1, 0.0]]), extent_3)
    beside = network._places(torch.tensor([[-0.3 + 0.2, 0.1, 0.0]]), extent_3)
    torch.testing.assert_close(here[:, :, 4:], beside[:, :, :4])
    assert here.std((2, 3, 4)).min() > 0
