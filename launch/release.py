"""Release audited patches and their generator: python launch/release.py name=NAME run=RUN audit=FILE"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("release")
