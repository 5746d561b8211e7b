"""Show what a variant costs: python launch/plan.py"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("plan")
