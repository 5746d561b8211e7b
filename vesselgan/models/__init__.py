"""Networks: generator, critic, U-Net."""
