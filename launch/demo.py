"""Run the whole pipeline on a small phantom cohort: python launch/demo.py"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("demo")
