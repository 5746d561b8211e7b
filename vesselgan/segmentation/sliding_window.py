"""A U-Net over a whole volume: overlapping windows of the training patch's size with Gaussian weights.

Shapes: N batch, C channel, X Y Z voxels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vesselgan.models.unet import Unet


def probability_map(
    unet: Unet,
    image_XYZ: np.ndarray,
    *,
    patch_shape: Sequence[int],
    overlap: float,
    batch_size: int,
    scaling: str,
    show_progress: bool = False,
) -> np.ndarray:
    """Vessel probability of every voxel, float32 [X, Y, Z], of an image in 0..255; the U-Net in evaluation mode.

    MONAI's sliding window; neighbours share `overlap` of a window. An axis shorter than the patch gets one window,
    reflect-padded at its far end to the next size that the U-Net can halve: a volume that fits into one window and
    divides is inferred directly. `scaling` as in training: `patch` rescales every window to 0..255 by itself.
    """
    from monai.inferers.utils import sliding_window_inference

    assert not unet.training, "in training mode a window would depend on its batch"
    step = 2 ** (len(unet.downs) - 1)
    sizes = zip(patch_shape, image_XYZ.shape, strict=True)
    window = tuple(patch if side >= patch else math.ceil(side / step) * step for patch, side in sizes)
    padding = [(0, max(0, w - side)) for w, side in zip(window, image_XYZ.shape, strict=True)]
    padded_XYZ = np.pad(image_XYZ, padding, mode="reflect") if np.any(padding) else image_XYZ
    device = next(unet.parameters()).device
    with torch.inference_mode():
        probability = sliding_window_inference(
            torch.from_numpy(np.ascontiguousarray(padded_XYZ))[None, None].to(device),
            window,
            batch_size,
            (lambda windows: unet(rescale_minmax(windows))) if scaling == "patch" else unet,
            overlap=overlap,
            mode="gaussian",
            progress=show_progress,
        )
    x, y, z = image_XYZ.shape
    assert isinstance(probability, Tensor)
    return probability[0, 0, :x, :y, :z].cpu().numpy()


def rescale_minmax(windows_N1XYZ: Tensor) -> Tensor:
    """Each window's minimum and maximum become 0 and 255 (the authors' scaling); a constant one becomes 0."""
    low = windows_N1XYZ.amin((1, 2, 3, 4), keepdim=True)
    span = windows_N1XYZ.amax((1, 2, 3, 4), keepdim=True) - low
    return (windows_N1XYZ - low) * (255 / torch.where(span > 0, span, 1.0))
