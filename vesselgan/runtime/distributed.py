"""Ranks, devices and collective calls."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vesselgan.core import console
from vesselgan.core.errors import ResourceError, VesselganError
from vesselgan.runtime.launchers import master_address, ranks_from_environment

Result = TypeVar("Result")
BARRIER_MINUTES = 24 * 60.0
"""Timeout of a rank that has done its volumes and waits for the others; a launcher ends all when one dies."""


@dataclass(frozen=True)
class World:
    """This process among all ranks."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(device: str, *, timeout_minutes: float = 10.0) -> World:
    """Join the process group (gloo on CPU, nccl on CUDA); `device`: auto, cpu or cuda (ResourceError if absent).

    timeout_minutes: of every collective call.
    """
    rank, size, local_rank = ranks_from_environment(os.environ)
    console.set_rank(rank)
    torch_device = choose_device(device, local_rank)
    os.environ["DS_ACCELERATOR"] = torch_device.type
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(size)
    # DeepSpeed uses LOCAL_RANK as the device index.
    os.environ["LOCAL_RANK"] = str(local_rank if torch_device.index is None else torch_device.index)
    if size > 1:
        host, port = master_address(os.environ)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    if torch_device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, local_size)))
    _import_deepspeed()
    import deepspeed

    backend, timeout = "gloo" if torch_device.type == "cpu" else "nccl", timedelta(minutes=timeout_minutes)
    try:
        if size == 1 and not dist.is_initialized():
            # No port: launchers give every run the same one, and one rank has nobody to meet there.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
    except RuntimeError as error:
        raise _init_error(error, rank, size) from error
    # DeepSpeed would create its own group for gradients, with a timeout of half an hour in place of `timeout_minutes`.
    deepspeed.utils.groups._WORLD_GROUP = dist.group.WORLD  # type: ignore[attr-defined]
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    return World(rank=rank, size=size, local_rank=local_rank, device=torch_device)


def join_ranks(device: str) -> World:
    """Ranks that work on volumes of their own and meet at the end; a single one needs no process group."""
    rank, size, local_rank = ranks_from_environment(os.environ)
    if size == 1:
        return World(rank, size, local_rank, choose_device(device, local_rank))
    return start(device, timeout_minutes=BARRIER_MINUTES)


def select_kernels(*, deterministic: bool) -> None:
    """For training: cuDNN's fastest convolution kernels by trial, or deterministic ones. A CPU has none of both.

    cuDNN's heuristics take float32 kernels for the weight gradients of wide transposed convolutions: the generator's
    backward was 74 of the 100 ms that a step kept an H100 busy (fp16, width 512, 128x128x64, batch 4). Four candidates
    per convolution: the step of ten candidates was no faster (65 to 70 ms, of four 60) and its first one took 20 s
    longer. Inference keeps the heuristics: a trial may choose otherwise the next time, and with it the last bits.
    """
    torch.backends.cudnn.benchmark_limit = 4
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = not deterministic, deterministic


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # Otherwise the next start in this process would use the destroyed group.
        sys.modules["deepspeed.utils.groups"]._WORLD_GROUP = None  # type: ignore[attr-defined]


def barrier() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def broadcast_object(value: Any, world: World) -> Any:
    """Rank 0's `value` on every rank."""
    if world.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=world.device)
    return values[0]


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


def maximum_over_ranks(value: float, world: World) -> float:
    """The largest `value` of all ranks."""
    if world.size == 1:
        return value
    values = torch.tensor([value], dtype=torch.float64, device=world.device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return float(values)


def run_on_rank0(world: World, call: Callable[[], Result]) -> Result:
    """Run `call` on rank 0 and return its result on all ranks; raises its VesselganError on all, printed by rank 0."""
    result: Any = None
    error: VesselganError | None = None
    if world.is_main:
        try:
            result = call()
        except VesselganError as caught:
            error = caught
    result, error = broadcast_object((result, error), world)
    if error is not None:
        error.is_printed_elsewhere = not world.is_main
        raise error
    return result


def run_on_all_ranks(world: World, call: Callable[[], Result]) -> Result:
    """Run `call` on every rank, each with its own result; a VesselganError of any is raised on all, printed once."""
    result: Any = None
    error: VesselganError | None = None
    try:
        result = call()
    except VesselganError as caught:
        error = caught
    errors = [error]
    if world.size > 1:
        errors = [None] * world.size
        dist.all_gather_object(errors, error)
    for rank, first in enumerate(errors):
        if first is not None:
            first.is_printed_elsewhere = world.rank != rank
            raise first
    return result


def choose_device(device: str, local_rank: int) -> torch.device:
    """The CPU, or the GPU of this local rank (index 0 if each task sees only its own); switches TF32 off.

    ResourceError for a GPU that was requested or granted but is missing, and if ranks would share one.
    """
    # TF32, torch's default for convolutions on a GPU, keeps 10 of float32's 23 mantissa bits.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    granted = bool(os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS"))
    if torch.cuda.is_available() and device != "cpu":
        if local_rank < torch.cuda.device_count():
            return torch.device("cuda", local_rank)
        # With `srun --gpus-per-task=1` the node has more GPUs than this task sees.
        if local_rank < int(os.environ.get("SLURM_GPUS_ON_NODE") or 0):
            return torch.device("cuda", 0)
        raise ResourceError(f"local rank {local_rank} but {torch.cuda.device_count()} GPUs here: start fewer ranks")
    if device == "cuda" or (granted and device == "auto"):
        reason = "runtime.device=cuda was asked" if device == "cuda" else "the job was granted a GPU"
        raise ResourceError(
            f"{reason}, but PyTorch {torch.__version__} sees none: check the driver and that PyTorch is a CUDA build, "
            "or set runtime.device=cpu"
        )
    return torch.device("cpu")


def _init_error(error: RuntimeError, rank: int, size: int) -> ResourceError:
    line = str(error).strip().splitlines()[0][:160]
    if size == 1:
        return ResourceError(f"the communication of a single rank cannot start ({line})")
    address = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ.get('MASTER_PORT')}"
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        return ResourceError(
            f"{address}: the port is in use by another job, or by one that did not end; choose a free one "
            "(deepspeed --master_port N, or MASTER_PORT=N)"
        )
    return ResourceError(
        f"rank {rank} of {size} met no other at {address} ({line}); did every rank start, and can they reach that host?"
    )


def _import_deepspeed() -> None:
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
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger

    level = logging.DEBUG if console.is_debug() else logging.WARNING
    for part in (logger, *logger.handlers):
        part.setLevel(level)
    if not logger.filters:
        # Our Adam is the untested optimizer, which the tests here test.
        logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
    # DeepSpeed refuses fp16 without half instructions, which the networks do not need: see models.blocks.compute_dtype.
    type(get_accelerator()).is_fp16_supported = lambda self: True  # type: ignore[method-assign]
    # On a CPU DeepSpeed compiles a shared-memory operator at start (a minute, and a C++ compiler), used only by its
    # inference. `import deepspeed.comm.torch` would yield torch itself, hence sys.modules.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
