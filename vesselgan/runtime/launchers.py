"""Rank, world size and master address from the environment variables of launchers.

    deepspeed, torchrun   RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
    srun                  SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID; the first host of SLURM_STEP_NODELIST
    none                  one process

A batch script also has SLURM_PROCID=0 and the job's SLURM_NTASKS, but is no task of a step (SLURM_STEP_NUM_TASKS).
"""

import re
from collections.abc import Mapping

from vesselgan.core.errors import UsageError

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# Variables in which torchrun and deepspeed state the number of their launchers, one per node.
AGENTS = {"GROUP_WORLD_SIZE": "torchrun", "CROSS_SIZE": "deepspeed"}
HINTS = {
    "torchrun": "--nnodes=$SLURM_NNODES --node_rank=$SLURM_NODEID --master_addr --master_port, one per node",
    "deepspeed": "--hostfile --no_ssh --node_rank=$SLURM_NODEID --master_addr, one per node",
}
FIRST_PORT, NUM_PORTS = 15000, 10000
"""Range of a job's port: below the ephemeral ports."""


def ranks_from_environment(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, size, local rank) of this process.

    UsageError if launchers contradict each other: the ranks would each train alone, or wait for ever.
    """
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS") or 1
    if "RANK" in environment or (_number(environment, "WORLD_SIZE") or 1) > 1:
        return _from_launcher(environment, tasks)
    if tasks > 1:
        procid, localid = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID")
        if procid is None or localid is None:
            raise UsageError(f"{tasks} tasks but no SLURM_PROCID or SLURM_LOCALID: start the process with srun")
        return procid, tasks, localid
    in_batch_script = "SLURM_PROCID" in environment and "SLURM_STEP_ID" not in environment
    num_tasks = _number(environment, "SLURM_NTASKS") or 1
    if in_batch_script and num_tasks > 1:
        raise UsageError(
            f"the job has {num_tasks} tasks, but this process was started without srun and is alone: start it with "
            "srun, or ask for --ntasks=1"
        )
    return 0, 1, 0


def master_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """(host, port) of rank 0: MASTER_ADDR and MASTER_PORT, else the step's first host and a port of the job's own.

    UsageError without either.
    """
    host = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", ""))
    if not host:
        raise UsageError("several ranks but MASTER_ADDR is not set: name the host of rank 0")
    port = _number(environment, "MASTER_PORT")
    if port is None:
        job = _number(environment, "SLURM_JOB_ID")
        if job is None:
            raise UsageError("several ranks but MASTER_PORT is not set: name a free port of rank 0's host")
        port = FIRST_PORT + job % NUM_PORTS
    return host, port


def first_host(nodes: str) -> str:
    """`gpu007` of Slurm's list `gpu[007-009,011],login1`; empty for an empty list."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\]([^,]*))?", nodes)
    return "".join(group or "" for group in match.groups()) if match else ""


def _from_launcher(environment: Mapping[str, str], tasks: int) -> tuple[int, int, int]:
    missing = [name for name in RANK_VARIABLES if name not in environment]
    if missing:
        present = [name for name in RANK_VARIABLES if name in environment]
        raise UsageError(
            f"{' and '.join(present)} set but {' and '.join(missing)} not: unset "
            f"{'it' if len(present) == 1 else 'them'}, or start through deepspeed, torchrun or srun"
        )
    rank, size, local_rank = (_number(environment, name) or 0 for name in RANK_VARIABLES)
    if not (0 <= rank < size and 0 <= local_rank <= rank):
        raise UsageError(
            f"RANK={rank}, LOCAL_RANK={local_rank} and WORLD_SIZE={size} do not belong together: unset them, or start "
            "through deepspeed, torchrun or srun"
        )
    for name, launcher in AGENTS.items():
        count = _number(environment, name)
        if count is not None and count != tasks and tasks > 1:
            raise UsageError(
                f"srun started {launcher} {tasks} times but it knows of {count} ({name}): each would train alone; "
                f"tell it of the others ({HINTS[launcher]})"
            )
    if size < tasks:
        raise UsageError(
            f"srun started {tasks} tasks but WORLD_SIZE={size}: each would train alone; unset RANK and WORLD_SIZE, or "
            "let srun start one launcher per node that knows of the others"
        )
    return rank, size, local_rank


def _number(environment: Mapping[str, str], name: str) -> int | None:
    if name not in environment:
        return None
    try:
        return int(environment[name])
    except ValueError as error:
        raise UsageError(f"{name}={environment[name]!r} is not a number: unset it, or use a launcher") from error
