"""N4 non-uniformity correction (Tustison 2010), by SimpleITK."""

# X Y Z voxels of the canonical grid

from collections.abc import Sequence
from typing import Any

import numpy as np

from vesselgan.core.errors import DataError, ResourceError


def import_simpleitk() -> Any:
    """The module SimpleITK; ResourceError when it is missing."""
    try:
        import SimpleITK
    except ImportError as error:
        raise ResourceError(
            "preprocess.bias=true needs SimpleITK (or say preprocess.bias=false): pip install 'vesselgan[preprocess]'"
        ) from error
    return SimpleITK


def correct(
    image_XYZ: np.ndarray, spacing_mm: Sequence[float], *, shrink: int, iterations: Sequence[int]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The image divided by its bias field, float32, and the provenance.

    The field is fitted inside the foreground (Otsu's threshold) of the volume shrunk by `shrink` and evaluated on the
    whole grid. Foreground zeros stay zero. One thread, so that the bytes do not depend on the machine's cores.
    DataError when N4 cannot fit this image, ResourceError when SimpleITK is missing.
    """
    sitk = import_simpleitk()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = sitk.GetImageFromArray(np.ascontiguousarray(image_XYZ.T, dtype=np.float32))
    image.SetSpacing([float(s) for s in spacing_mm])
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([int(n) for n in iterations])
    try:
        foreground = sitk.OtsuThreshold(image, 0, 1, 200)
        factors = [min(shrink, size) for size in image.GetSize()]
        n4.Execute(sitk.Shrink(image, factors), sitk.Shrink(foreground, factors))
        log_field = n4.GetLogBiasFieldAsImage(image)
    except RuntimeError as error:
        last_line = str(error).strip().splitlines()[-1]
        raise DataError(f"N4 failed ({last_line}); look at the image, or say preprocess.bias=false") from error
    corrected_XYZ = image_XYZ / np.exp(sitk.GetArrayFromImage(log_field).T).astype(np.float32)
    if not np.isfinite(corrected_XYZ).all():
        raise DataError("N4 gave a field that is not finite; look at the image, or say preprocess.bias=false")
    provenance = {
        "tool": "SimpleITK N4BiasFieldCorrection",
        "version": sitk.Version.VersionString(),
        "parameters": {"shrink": shrink, "iterations": [int(n) for n in iterations], "mask": "Otsu, 200 bins"},
    }
    return np.ascontiguousarray(corrected_XYZ, dtype=np.float32), provenance
