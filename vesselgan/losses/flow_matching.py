"""Flow matching: the straight path from a patch to noise, and the loss of a denoised patch (Lipman 2023, Liu 2023).

Shapes: N batch, C channel, X Y Z voxels.
"""

from torch import Tensor

SMALLEST_TIME = 0.05
"""Below it the weight stays."""


def point_on_path(patch_NCXYZ: Tensor, noise_NCXYZ: Tensor, time_N: Tensor) -> Tensor:
    """x_t = (1 - t) x + t e: the patch x at time 0, the noise e at time 1."""
    return patch_NCXYZ.lerp(noise_NCXYZ, time_N.view(-1, 1, 1, 1, 1).to(patch_NCXYZ.dtype))


def denoising_errors(denoised_NCXYZ: Tensor, patch_NCXYZ: Tensor, time_N: Tensor) -> Tensor:
    """Mean squared error over t, per channel [C], at least float32; the loss is the mean of the channels.

    The velocity e - x is (x_t - x) / t, so this is its squared error times t: with the velocity's own error, nearly
    clean patches outweigh those whose vessels are still to be decided; with the patch's, fine detail counts for little.
    """
    errors_NC = (denoised_NCXYZ - patch_NCXYZ).square().mean((2, 3, 4))
    return (errors_NC / time_N.clamp_min(SMALLEST_TIME).unsqueeze(1).to(errors_NC.dtype)).mean(0)
