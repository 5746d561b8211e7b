"""Audit synthetic patches or heads before they leave: python launch/audit.py run=RUN out=FILE"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("audit")
