"""Synthetic, labelled 3D brain angiography: 3D Wasserstein GANs that make image and vessel label together."""

from vesselgan.core.version import __version__

__all__ = ["__version__"]
