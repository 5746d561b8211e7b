"""Score segmented volumes against their labels (Dice, bAVD), or synthetic patches against real ones (FID, PRD, copies).

python launch/evaluate.py evaluate=segmentation name=real predictions=work/predictions/real out=work/results/real.json
python launch/evaluate.py evaluate=threshold name=threshold out=work/results/threshold.json
python launch/evaluate.py evaluate=image name=sn_mp image.synthetic=work/runs/NAME/synthetic \\
    image.weights=resnet_10_23dataset.pth out=work/results/image-sn_mp.json
python launch/evaluate.py evaluate=memorisation name=sn_mp memorisation.synthetic=work/runs/NAME/synthetic \\
    memorisation.require_open=true out=work/results/memorisation-sn_mp.json
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("evaluate", __doc__)
    from vesselgan.evaluation.run import evaluate

    evaluate(command.config)


if __name__ == "__main__":
    exit_on_error(main)
