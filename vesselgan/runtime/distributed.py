"""Ranks and devices: how the processes of a run meet, and what each computes on."""

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from vesselgan.core.errors import ResourceError, VesselganError
from vesselgan.runtime.launchers import meeting_point, ranks_from_environment


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


def start(device: str, *, timeout_minutes: float = 10.0, deterministic: bool = False) -> World:
    """Join the process group (gloo on CPU, nccl on CUDA); `device`: auto, cpu or cuda (ResourceError if absent).

    timeout_minutes: how long a rank waits for another one in any collective call. deterministic: a GPU's convolutions
    give the same bytes in every session.
    """
    rank, size, local_rank = ranks_from_environment(os.environ)
    chosen = choose_device(device, local_rank)
    os.environ["DS_ACCELERATOR"] = chosen.type
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(size)
    # DeepSpeed takes LOCAL_RANK for the device's number.
    os.environ["LOCAL_RANK"] = str(local_rank if chosen.index is None else chosen.index)
    if size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    else:
        host, port = meeting_point(os.environ)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    if chosen.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, ranks_here)))
    _import_deepspeed_quietly()
    import deepspeed

    try:
        deepspeed.init_distributed(
            dist_backend="gloo" if chosen.type == "cpu" else "nccl",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(minutes=timeout_minutes),
        )
    except RuntimeError as error:
        raise _meeting_failed(error, rank, size) from error
    # For gradients DeepSpeed would make a group of its own, whose calls wait for half an hour, whatever is said above.
    deepspeed.utils.groups._WORLD_GROUP = dist.group.WORLD
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # By its rules of thumb cuDNN takes float32 kernels for the weight gradients of wide transposed convolutions:
        # 74 of 100 ms of a generator step (H100, width 512, 128x128x64). Trying each kernel once finds the right ones.
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic
    return World(rank=rank, size=size, local_rank=local_rank, device=chosen)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # Else the next start in this process would meet in a group that is gone.
        sys.modules["deepspeed.utils.groups"]._WORLD_GROUP = None


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


def minimum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Element-wise minimum of `values` over the ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values, dist.ReduceOp.MIN)
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
        result.is_reported = not world.is_main
        raise result
    return result


def run_on_all_ranks(world: World, call: Callable[[], Any]) -> Any:
    """Run `call` on every rank and return its result there; a VesselganError of any is raised on all, told once."""
    result, error = None, None
    try:
        result = call()
    except VesselganError as caught:
        error = caught
    errors = [error]
    if world.size > 1:
        errors = [None] * world.size
        dist.all_gather_object(errors, error)
    failed = [rank for rank, one in enumerate(errors) if one is not None]
    if failed:
        errors[failed[0]].is_reported = world.rank != failed[0]
        raise errors[failed[0]]
    return result


def check_precision(precision: str, world: World, *, program: str, key: str) -> None:
    """ResourceError, with every command that would run here, where DeepSpeed refuses `precision`; after `start`.

    program: the command line so far; key: the setting that holds the precision.
    """
    there = [kind for kind in ("fp16", "bf16", "fp32") if not half_is_missing(kind)]
    if precision not in there:
        commands = "".join(f"\n    {program} --deepspeed_config ds_{kind}.json {key}={kind}" for kind in there)
        raise ResourceError(
            f"this {world.device.type} has no {precision} that DeepSpeed accepts; what would run here:{commands}"
        )


def half_is_missing(precision: str) -> bool:
    """Whether DeepSpeed refuses `precision` on this accelerator; asked after `start`."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if precision == "fp16":
        return not accelerator.is_fp16_supported()
    return precision == "bf16" and not accelerator.is_bf16_supported()


def choose_device(device: str, local_rank: int) -> torch.device:
    """The CPU, or the GPU of this local rank: the only one that it sees where each task was given one of the node's.

    float32 is float32 there from here on. ResourceError for a GPU that was asked for or granted and is not there, and
    where ranks would share one.
    """
    # TF32, torch's default for a GPU's convolutions, keeps 10 of float32's 23 bits.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    granted = bool(os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS"))
    if torch.cuda.is_available() and device != "cpu":
        if local_rank < torch.cuda.device_count():
            return torch.device("cuda", local_rank)
        # What the job has on this node, though a task of `srun --gpus-per-task=1` sees one of them alone.
        if local_rank < int(os.environ.get("SLURM_GPUS_ON_NODE") or 0):
            return torch.device("cuda", 0)
        raise ResourceError(f"local rank {local_rank} but {torch.cuda.device_count()} GPUs here: start fewer ranks")
    if device == "cuda" or (granted and device == "auto"):
        why = "runtime.device=cuda was asked" if device == "cuda" else "the job was granted a GPU"
        raise ResourceError(
            f"{why}, but PyTorch {torch.__version__} sees none: check the driver and that PyTorch is a CUDA build, "
            "or set runtime.device=cpu"
        )
    return torch.device("cpu")


def _meeting_failed(error: RuntimeError, rank: int, size: int) -> ResourceError:
    """Why the ranks did not meet, in words."""
    address = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ.get('MASTER_PORT')}"
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        return ResourceError(
            f"{address}: the port is in use, by another job or one that was not ended; take a free one "
            "(deepspeed --master_port N, or MASTER_PORT=N)"
        )
    first = str(error).strip().splitlines()[0][:160]
    return ResourceError(
        f"rank {rank} of {size} met no other at {address} ({first}); did every rank start, and do they reach that host?"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _import_deepspeed_quietly() -> None:
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            f"DeepSpeed cannot be imported ({error}); install it into this environment: "
            f"{sys.executable} -m pip install -c constraints.txt deepspeed"
        ) from error
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # On CPU DeepSpeed would compile a shared-memory operator at start (a minute, and a C++ compiler) that only its
    # inference uses. `import deepspeed.comm.torch` yields the real torch, hence sys.modules.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
