"""The paper's whole comparison, or a search for the best GAN: launch commands, started as processes."""
