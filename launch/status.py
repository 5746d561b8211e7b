"""Show how a run is doing: python launch/status.py RUN"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("status")
