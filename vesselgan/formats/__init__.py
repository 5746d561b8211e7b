"""What lies on disk: NIfTI volumes, cohorts, shards, run directories; never imports torch."""
