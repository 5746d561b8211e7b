"""Measure a ratio against the way the authors did it, competitors taking turns in one process; one line of JSON.

python launch/benchmark.py target=loader
python launch/benchmark.py target=prepare repeats=5 out=work/benchmarks.jsonl
"""

from vesselgan.config.compose import parse
from vesselgan.errors import exit_on_error


def main() -> None:
    command = parse("benchmark", __doc__)
    from vesselgan.benchmark.run import benchmark

    benchmark(command.config)


if __name__ == "__main__":
    exit_on_error(main)
