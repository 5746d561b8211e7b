"""Score segmented volumes against their labels: Dice and bAVD, all vessels and intracranial.

python launch/evaluate.py evaluate=segmentation name=real predictions=work/predictions/real out=work/results/real.json
python launch/evaluate.py evaluate=threshold name=threshold out=work/results/threshold.json
"""

from vesselgan.config.compose import parse
from vesselgan.errors import exit_on_error


def main() -> None:
    command = parse("evaluate", __doc__)
    from vesselgan.evaluation.jobs import evaluate

    evaluate(command.config)


if __name__ == "__main__":
    exit_on_error(main)
