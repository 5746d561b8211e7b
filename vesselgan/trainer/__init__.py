"""The loop's parts, shared by GAN and U-Net: set-up, checkpoints, log, progress, requests to stop."""
