"""Check this machine: GPU, precision, NCCL, MPI, HDF5, disk, locks. Exit 6 names what to fix.

python launch/doctor.py
srun --nodes=4 --ntasks-per-node=1 python launch/doctor.py work_dir=/scratch/work runtime.device=cuda
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("doctor", __doc__)
    from vesselgan.tools.doctor import check_machine

    check_machine(command)


if __name__ == "__main__":
    exit_on_error(main)
