"""Flow matching: the straight path from a patch to noise, and the loss of a predicted velocity (Lipman 2023, Liu 2023).

Shapes: N batch, C channel, X Y Z voxels.
"""

from torch import Tensor


def point_on_path(patch_NCXYZ: Tensor, noise_NCXYZ: Tensor, time_N: Tensor) -> Tensor:
    """x_t = (1 - t) x + t e: the patch x at time 0, the noise e at time 1."""
    time_N1111 = time_N.view(-1, 1, 1, 1, 1).to(patch_NCXYZ.dtype)
    return patch_NCXYZ.lerp(noise_NCXYZ, time_N1111)


def velocity_errors(velocity_NCXYZ: Tensor, patch_NCXYZ: Tensor, noise_NCXYZ: Tensor) -> Tensor:
    """Mean squared difference of a predicted velocity from that of the path, e - x, per channel [C], at least float32.

    The loss is the mean of the channels.
    """
    return (velocity_NCXYZ - (noise_NCXYZ - patch_NCXYZ)).square().mean((0, 2, 3, 4))
