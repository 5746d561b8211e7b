"""The paper's comparison by one command: U-Nets on real, on each GAN's patches and on both, on every test cohort.

python launch/study.py runs=[work/runs/a,work/runs/b] test_cohorts=[work/phantom_other] seeds=[1,2,3]
python launch/study.py study=sweep runs=[work/runs/a] sweep.checkpoints=[step_00001000,step_00002000]
python launch/study.py study=sweep sweep.variant=sn_mp sweep.learning_rates=[2e-4,4e-4] sweep.batch_sizes=[4,8]

Started again it resumes. Results, tables and the report: work/studies/NAME.
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("study", __doc__)
    from vesselgan.workflow.study.run import run

    run(command.config)


if __name__ == "__main__":
    exit_on_error(main)
