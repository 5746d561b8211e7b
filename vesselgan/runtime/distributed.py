"""Ranks and devices: who we are among how many, on what, resolved in one place from the launcher's environment."""

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from vesselgan.errors import ResourceError, UsageError, VesselganError


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def ranks_from_environment(environment: dict[str, str]) -> tuple[int, int, int]:
    """(rank, size, local rank) from RANK/WORLD_SIZE (deepspeed, torchrun), else SLURM_*, else one process.

    UsageError when two launchers contradict each other: ranks that disagree would each train alone.
    """
    slurm_size = int(environment.get("SLURM_NTASKS", "1")) if "SLURM_PROCID" in environment else 1
    if "RANK" in environment:
        missing = [name for name in ("WORLD_SIZE", "LOCAL_RANK") if name not in environment]
        if missing:
            raise UsageError(
                f"RANK is set but {' and '.join(missing)} is not: start through deepspeed, torchrun or srun"
            )
        return int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment["LOCAL_RANK"])
    if "WORLD_SIZE" in environment and int(environment["WORLD_SIZE"]) > 1:
        raise UsageError(f"WORLD_SIZE={environment['WORLD_SIZE']} but RANK is not set: unset it, or use a launcher")
    if slurm_size > 1:
        return int(environment["SLURM_PROCID"]), slurm_size, int(environment["SLURM_LOCALID"])
    return 0, 1, 0


def start(device: str) -> World:
    """Join the process group (gloo on CPU, nccl on CUDA); `device`: auto, cpu or cuda (ResourceError if absent)."""
    rank, size, local_rank = ranks_from_environment(dict(os.environ))
    chosen = choose_device(device, local_rank)
    os.environ["DS_ACCELERATOR"] = chosen.type
    os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"] = str(rank), str(size), str(local_rank)
    if size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    elif "MASTER_ADDR" not in os.environ:
        raise UsageError(f"{size} ranks but MASTER_ADDR is not set: name the host of rank 0")
    if chosen.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, ranks_here)))
    _import_deepspeed_quietly()
    import deepspeed

    deepspeed.init_distributed(
        dist_backend="gloo" if chosen.type == "cpu" else "nccl", auto_mpi_discovery=False, verbose=False
    )
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return World(rank=rank, size=size, local_rank=local_rank, device=chosen)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def broadcast_object(value: Any, world: World) -> Any:
    """Rank 0's `value` on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=world.device)
    return box[0]


def mean_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    """Element-wise mean of `values` over the ranks."""
    if world.size > 1:
        dist.all_reduce(values)
        values = values / world.size
    return values


def together(world: World, call: Callable[[], Any]) -> Any:
    """Run `call` on rank 0 and hand its result to all; its VesselganError is raised on every rank, told by rank 0."""
    outcome: tuple[str, Any] = ("", None)
    if world.is_main:
        try:
            outcome = ("done", call())
        except VesselganError as error:
            outcome = ("failed", error)
    kind, result = broadcast_object(outcome, world)
    if kind == "failed":
        result.is_told = not world.is_main
        raise result
    return result


def half_is_missing(precision: str) -> bool:
    """Whether DeepSpeed refuses `precision` on this accelerator; asked after `start`."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if precision == "fp16":
        return not accelerator.is_fp16_supported()
    return precision == "bf16" and not accelerator.is_bf16_supported()


def choose_device(device: str, local_rank: int) -> torch.device:
    granted = bool(os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS"))
    if torch.cuda.is_available() and device != "cpu":
        if local_rank >= torch.cuda.device_count():
            raise ResourceError(f"local rank {local_rank} but {torch.cuda.device_count()} GPUs here: start fewer ranks")
        return torch.device("cuda", local_rank)
    if device == "cuda" or (granted and device == "auto"):
        why = "runtime.device=cuda was asked" if device == "cuda" else "the job was granted a GPU"
        raise ResourceError(
            f"{why}, but PyTorch {torch.__version__} sees none: check the driver and that PyTorch is a CUDA build, "
            "or set runtime.device=cpu"
        )
    return torch.device("cpu")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _import_deepspeed_quietly() -> None:
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    import deepspeed  # noqa: F401
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # On CPU DeepSpeed would compile a shared-memory operator at start (a minute, and a C++ compiler) that only its
    # inference uses. `import deepspeed.comm.torch` yields the real torch, hence sys.modules.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
