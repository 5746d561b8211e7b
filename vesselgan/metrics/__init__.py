"""Scores of segmentations and of synthetic patches: arrays in, numbers out; no files."""
