"""Training of the GAN."""
