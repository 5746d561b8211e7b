"""The training loop of GAN and U-Net and its parts: session, schedule, checkpoints, log, requests to stop."""
