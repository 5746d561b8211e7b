"""Measured ratios against the way the authors did it, in one process and one run."""
