"""From a trained GAN to synthetic shards."""
