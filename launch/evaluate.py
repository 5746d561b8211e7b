"""Score segmented volumes or synthetic patches: python launch/evaluate.py name=NAME predictions=DIR out=FILE"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("evaluate")
