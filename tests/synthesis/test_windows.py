"""A volume from windows: where they lie, and that their average is exact where they agree."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from vesselgan.models.flow import FlowGenerator, init_flow_weights
from vesselgan.synthesis.windows import Windows, make_image

PATCH = (8, 16, 8)

pytestmark = pytest.mark.usefixtures("one_thread")


def flow() -> FlowGenerator:
    network = FlowGenerator(PATCH, 8, has_position=True, time_shift=2.0, num_steps=4, guidance=0.2, num_given=1)
    init_flow_weights(network, 0)
    return network.eval()


@pytest.mark.parametrize("shape", [(8, 16, 8), (9, 17, 11), (40, 50, 33)])
def test_windows_cover_every_voxel(shape):
    windows = Windows(shape, PATCH)
    covered = np.zeros(shape, int)
    for x, y, z in windows.corners:
        covered[x : x + 8, y : y + 16, z : z + 8] += 1
    assert covered.min() >= 1
    assert all(
        b - a <= p / 2 for s, p in zip(windows.starts, PATCH, strict=True) for a, b in zip(s, s[1:], strict=False)
    )
    for axis, total in enumerate(windows.total_weights()):
        assert total.shape == (shape[axis],) and (total > 0).all()


def test_windows_lie_evenly():
    assert Windows((20, 16, 8), PATCH).starts == [[0, 4, 8, 12], [0], [0]]


def test_positions_are_those_of_the_training_patches():
    positions_N3 = Windows((16, 16, 8), PATCH).positions([(0, 0, 0), (4, 0, 0), (8, 0, 0)])
    assert positions_N3.tolist() == [[-0.5, 0, 0], [0, 0, 0], [0.5, 0, 0]]


def test_windows_that_agree_leave_no_trace():
    """A network that knows the image: every window predicts its part of it, so the volume is it."""
    shape = (20, 24, 13)
    known_XYZ = torch.rand(shape) * 2 - 1
    network = flow()

    def denoised(x_NCXYZ, time_N, position_N3, extent_3):
        centre_N3 = (position_N3 + 1) / 2 * torch.tensor(shape)
        parts = [known_XYZ[x - 4 : x + 4, y - 8 : y + 8, z - 4 : z + 4] for x, y, z in centre_N3.round().int().tolist()]
        return torch.stack(parts)[:, None]

    network.denoised = denoised  # type: ignore[method-assign]
    done: list[int] = []
    image_XYZ = make_image(network, np.zeros((1, *shape), np.float32), seed=1, batch_size=5, advance=done.append)
    np.testing.assert_allclose(image_XYZ, known_XYZ.numpy(), atol=1e-5)
    assert sum(done) == 4 * len(Windows(shape, PATCH).corners)


def test_one_window_is_a_patch():
    """A volume of the patch's size: the sample that the network itself gives for this noise and place."""
    network = flow()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    label_XYZ = np.zeros(PATCH, np.uint8)
    label_XYZ[3:5] = 1
    noise_XYZ = torch.randn(PATCH, generator=torch.Generator().manual_seed(7))
    network.positions = lambda z: torch.zeros(1, 3)  # type: ignore[method-assign]
    with torch.no_grad():
        z_NL = torch.cat([noise_XYZ.flatten(), torch.zeros(4)])[None]
        expected_XYZ = network(z_NL, torch.from_numpy(label_XYZ)[None, None])[0, 0].numpy()
    image_XYZ = make_image(network, label_XYZ[None].astype(np.float32), seed=7, batch_size=1)
    np.testing.assert_allclose(image_XYZ, expected_XYZ, atol=1e-5)


FULL_SIZE = """
import resource, torch
from vesselgan.anatomy.head import synthetic_head
from vesselgan.models.flow import FlowGenerator
from vesselgan.synthesis.windows import make_image
shape = (312, 384, 127)
network = FlowGenerator(
    (64, 64, 32), 8, has_position=True, time_shift=2.0, num_steps=4, guidance=0.2, num_given=2
).eval()
network.denoised = lambda x, time, position, extent: x[:, :1]
make_image(network, synthetic_head(0, shape, (0.49, 0.49, 0.7)).channels(2), seed=0, batch_size=4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.soak
def test_a_full_head_takes_two_gib():
    """312x384x127 in 693 windows, all but the network: half of what a head may take."""
    done = subprocess.run([sys.executable, "-c", FULL_SIZE], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 2 * 2**20, done.stdout
