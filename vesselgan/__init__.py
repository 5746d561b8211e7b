"""Synthetic, labelled 3D brain angiography: 3D Wasserstein GANs that make image and vessel label together."""

__version__ = "0.1.0"
