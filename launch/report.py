"""Draw the tables and figures of all results as one page that opens offline.

python launch/report.py results=work/results runs=[work/runs/sn_mp-1a2b3c4d] out=work/report
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("report", __doc__)
    from vesselgan.report.page import report

    report(command.config)


if __name__ == "__main__":
    exit_on_error(main)
