"""What a run needs and no science: ranks, engines, checkpoints, logs."""
