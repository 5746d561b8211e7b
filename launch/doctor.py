"""Preview whether this machine is fit: GPU, precision, NCCL, MPI, HDF5, disk, locks. Exit 6 with what to mend.

python launch/doctor.py
srun --nodes=4 --ntasks-per-node=1 python launch/doctor.py work_dir=/scratch/work runtime.device=cuda
"""

from vesselgan.config.compose import parse
from vesselgan.core.errors import exit_on_error


def main() -> None:
    command = parse("doctor", __doc__)
    from vesselgan.tools.doctor import examine

    examine(command)


if __name__ == "__main__":
    exit_on_error(main)
