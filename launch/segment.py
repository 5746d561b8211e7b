"""Segment the vessels of whole volumes: NIfTI in, NIfTI out, same grid and number type; many volumes on many ranks.

python launch/segment.py run=work/runs/unet-real-1a2b3c4d input=my_images out=my_labels
python launch/segment.py run=work/runs/unet-real-1a2b3c4d data=phantom split=test out=work/predictions/real
deepspeed launch/segment.py run=work/runs/unet-real-1a2b3c4d input=my_images out=my_labels probability=true
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("segment", __doc__)
    from vesselgan.segmentation.predict import segment

    segment(command.config)


if __name__ == "__main__":
    exit_on_error(main)
