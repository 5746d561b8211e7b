"""Ranks from launchers' variables. The Slurm ones are those that srun and sbatch of Slurm 22.05 set."""

import pytest

from vesselgan.core.errors import UsageError
from vesselgan.runtime.launchers import first_host, master_address, ranks_from_environment

STEP = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}
STEP |= {"SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "47", "SLURM_STEP_NODELIST": "gpu[07-08]"}
BATCH = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "47"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "GROUP_WORLD_SIZE": "2"}
DEEPSPEED = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "CROSS_SIZE": "2"}
PER_NODE = {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"WORLD_SIZE": "1"}, (0, 1, 0)),
        (TORCHRUN, (3, 4, 1)),
        (DEEPSPEED, (3, 4, 1)),
        (STEP, (3, 4, 1)),
        (BATCH | {"SLURM_NTASKS": "1"}, (0, 1, 0)),  # one task: a batch script may start it by itself
        (BATCH | TORCHRUN, (3, 4, 1)),  # torchrun or deepspeed in a batch script
        (PER_NODE | TORCHRUN, (3, 4, 1)),  # one launcher per node
        (PER_NODE | DEEPSPEED, (3, 4, 1)),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "47"}, (0, 1, 0)),  # the shell of salloc
    ],
)
def test_a_launchers_ranks_are_read(environment, expected):
    assert ranks_from_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "0"}, "WORLD_SIZE and LOCAL_RANK"),
        ({"WORLD_SIZE": "2"}, "RANK and LOCAL_RANK"),
        ({"RANK": "4", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "RANK=4"),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}, "LOCAL_RANK=2"),
        ({"RANK": "x", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}, "RANK='x'"),
        (BATCH, "srun"),
        # Left over from another shell: every task would take itself for the only one.
        (STEP | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "WORLD_SIZE=1"),
        (PER_NODE | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "1"}, "torchrun"),
        # srun on two nodes, each with a launcher that knows of its own node alone.
        (PER_NODE | TORCHRUN | {"GROUP_WORLD_SIZE": "1"}, "torchrun"),
        (PER_NODE | DEEPSPEED | {"CROSS_SIZE": "1"}, "deepspeed.*--no_ssh"),
    ],
)
def test_contradicting_launchers_are_refused(environment, named):
    with pytest.raises(UsageError, match=named):
        ranks_from_environment(environment)


def test_where_rank_0_is_met():
    assert master_address({"MASTER_ADDR": "a", "MASTER_PORT": "29500"}) == ("a", 29500)
    assert master_address(STEP) == ("gpu07", 15047)
    assert master_address(STEP | {"MASTER_ADDR": "gpu07-ib0"}) == ("gpu07-ib0", 15047)
    assert master_address(STEP | {"SLURM_JOB_ID": "1234567", "MASTER_PORT": "5"}) == ("gpu07", 5)
    with pytest.raises(UsageError, match="MASTER_ADDR"):
        master_address({})
    with pytest.raises(UsageError, match="MASTER_PORT"):
        master_address({"MASTER_ADDR": "a"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("", ""),
        ("login1", "login1"),
        ("a,b", "a"),
        ("gpu[007-009,011],login1", "gpu007"),
        ("r1[3,5]", "r13"),
        ("n[1-2]-ib", "n1-ib"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host
