"""NIfTI in, shards out; parallel over MPI; never imports torch."""
