"""Train the segmentation U-Net: deepspeed launch/train_unet.py data.source=real"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("train_unet")
