"""Infrastructure of a run: ranks, engines, checkpoints, noise, timing, device memory."""
