"""Synthetic, labelled 3D brain angiography: 3D Wasserstein GANs that make image and vessel label together.

The public names are loaded when they are first used: `import vesselgan` imports neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from vesselgan.core.version import __version__

if TYPE_CHECKING:
    from vesselgan.data.patches import ShardDataset
    from vesselgan.evaluation.fid import fid, image_features
    from vesselgan.formats.shards import ShardSet
    from vesselgan.metrics.frechet import frechet_distance
    from vesselgan.metrics.overlap import dice
    from vesselgan.metrics.prd import prd_auc, prd_curve
    from vesselgan.metrics.surface import balanced_average_hausdorff
    from vesselgan.synthesis.sampler import load_generator

__all__ = ["ShardDataset", "ShardSet", "__version__", "balanced_average_hausdorff", "dice", "fid", "frechet_distance"]
__all__ += ["image_features", "load_generator", "prd_auc", "prd_curve"]

_MODULES = {
    "ShardDataset": "data.patches",
    "ShardSet": "formats.shards",
    "balanced_average_hausdorff": "metrics.surface",
    "dice": "metrics.overlap",
    "fid": "evaluation.fid",
    "frechet_distance": "metrics.frechet",
    "image_features": "evaluation.fid",
    "load_generator": "synthesis.sampler",
    "prd_auc": "metrics.prd",
    "prd_curve": "metrics.prd",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'vesselgan' has no attribute {name!r}")
    return getattr(import_module(f"vesselgan.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
