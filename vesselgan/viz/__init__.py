"""Slices, projections, 3D renderings, and the frame of an HTML page."""
