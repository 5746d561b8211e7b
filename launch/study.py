"""Run the paper's comparison: python launch/study.py runs=[RUN]"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("study")
