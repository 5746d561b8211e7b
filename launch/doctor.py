"""Check this machine: python launch/doctor.py"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("doctor")
