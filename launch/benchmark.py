"""Measure this machine: python launch/benchmark.py"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("benchmark")
