"""Jobs that read shards and NIfTI and write results: segmentation, image quality, the privacy audit."""
