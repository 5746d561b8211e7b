"""Draw all results as one page: python launch/report.py runs=[RUN]"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("report")
