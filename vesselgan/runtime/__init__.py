"""What a run needs and no science: ranks, engines, checkpoints, noise, timing, device memory."""
