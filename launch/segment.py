"""Segment the vessels of whole volumes: python launch/segment.py run=RUN input=IMAGES out=LABELS"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("segment")
