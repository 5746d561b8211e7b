"""Show how a run is doing: its last step, rate and checkpoint; healthy, stalled, stopped or finished. Changes nothing.

python launch/status.py work/runs/sn_mp-1a2b3c4d
python launch/status.py work/runs/sn_mp-1a2b3c4d --json
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("status", __doc__)
    from vesselgan.tools.status import status

    status(command)


if __name__ == "__main__":
    exit_on_error(main)
