"""The whole pipeline on a small phantom cohort, from NIfTI to a Dice score: python launch/demo.py [work_dir=DIR]"""

from vesselgan.config import compose
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = compose.parse("demo", __doc__)
    from vesselgan.workflow import demo

    demo.run(command.config, command.overrides)


if __name__ == "__main__":
    exit_on_error(main)
