"""Non-local means denoising (Buades 2005), by scikit-image."""

# X Y Z voxels of the canonical grid

from importlib.metadata import version
from typing import Any

import numpy as np

from vesselgan.core.errors import DataError

MAD_TO_SIGMA = 1 / 0.6744897501960817  # median absolute deviation of a normal distribution


def denoise(image_XYZ: np.ndarray, *, strength: float, patch: int, distance: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The image denoised by non-local means, float32, and the provenance.

    strength: cut-off of patch distances in standard deviations of the noise; patch: edge of the compared patches;
    distance: radius of the search (both in voxels).
    """
    from skimage.restoration import denoise_nl_means

    sigma = noise_sigma(image_XYZ)
    denoised_XYZ = denoise_nl_means(
        image_XYZ.astype(np.float32, copy=False),
        patch_size=patch,
        patch_distance=distance,
        h=strength * sigma,
        sigma=sigma,
        fast_mode=True,
        preserve_range=True,
    )
    provenance = {
        "tool": "scikit-image denoise_nl_means",
        "version": version("scikit-image"),
        "parameters": {"patch_size": patch, "patch_distance": distance, "h_over_sigma": strength, "sigma": sigma},
    }
    return denoised_XYZ.astype(np.float32, copy=False), provenance


def noise_sigma(image_XYZ: np.ndarray) -> float:
    """Standard deviation of the noise inside the head: from the finest diagonal Haar details (Donoho 1994).

    Only 2 x 2 x 2 blocks without a zero and brighter than half the mean of those count: air has less noise than tissue
    (Rician), and a background set to zero has none. DataError when there is no such block.
    """
    even_XYZ = image_XYZ[tuple(slice(extent // 2 * 2) for extent in image_XYZ.shape)]
    x, y, z = (extent // 2 for extent in even_XYZ.shape)
    block_X2Y2Z2 = even_XYZ.reshape(x, 2, y, 2, z, 2)
    mean_XYZ = block_X2Y2Z2.mean(axis=(1, 3, 5))
    is_whole_XYZ = (block_X2Y2Z2 != 0).all(axis=(1, 3, 5))
    if not is_whole_XYZ.any():
        raise DataError("no noise can be measured: hardly any neighbouring voxels above zero; preprocess.denoise=false")
    is_head_XYZ = is_whole_XYZ & (mean_XYZ >= mean_XYZ[is_whole_XYZ].mean() / 2)
    detail = block_X2Y2Z2[:, 0] - block_X2Y2Z2[:, 1]
    detail = detail[:, :, 0] - detail[:, :, 1]
    detail = (detail[..., 0] - detail[..., 1]) / np.sqrt(8.0)
    sigma = float(np.median(np.abs(detail[is_head_XYZ])) * MAD_TO_SIGMA)
    if not sigma > 0:
        raise DataError("the image holds no noise to remove; say preprocess.denoise=false")
    return sigma
