"""Arrays in, numbers out: every score of segmentations and of synthetic patches; no files."""
