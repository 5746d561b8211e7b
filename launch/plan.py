"""Show what a variant costs before a GPU is booked.

python launch/plan.py variant=c_sn_mp patch_shape=[128,128,64]
python launch/plan.py variant=sn_mp train.batch_size=8 ranks=[1,2,8] --json
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("plan", __doc__)
    from vesselgan.tools.plan import plan

    plan(command)


if __name__ == "__main__":
    exit_on_error(main)
