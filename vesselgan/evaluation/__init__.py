"""Scores of segmentations and of synthetic patches."""
