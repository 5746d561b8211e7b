"""Train the segmentation U-Net on real, synthetic or both kinds of patches; chosen on the real validation patches.

deepspeed launch/train_unet.py data.source=real
deepspeed launch/train_unet.py data.source=synthetic synthetic=work/runs/sn_mp-1a2b3c4d/synthetic
deepspeed launch/train_unet.py data.source=both synthetic=work/runs/sn_mp-1a2b3c4d/synthetic unet.max_steps=5000
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("train_unet", __doc__)
    from vesselgan.segmentation.train import train_unet

    train_unet(command)


if __name__ == "__main__":
    exit_on_error(main)
