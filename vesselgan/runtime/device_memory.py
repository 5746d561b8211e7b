"""Memory of this rank's device: the most that was used, the most there is, and how running out of it looks."""

import torch
import torch.distributed as dist

from vesselgan.core import memory
from vesselgan.runtime.distributed import World

CPU_REFUSALS = ("can't allocate memory", "not enough memory")


def peak_bytes(device: torch.device) -> int:
    """The most so far: tensors on a GPU (torch.cuda.max_memory_allocated), the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage's ru_maxrss: a program begins it with what the process that started it had used.
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def reserved_bytes(device: torch.device) -> int:
    """What the device must have for that: on a GPU with what the allocator holds back, as nvidia-smi sees it."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_bytes(device)


def limit_bytes(device: torch.device) -> int:
    """What there is: the GPU's memory, or the machine's within the job's limit."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(memory.total_bytes())


def largest_over_ranks(value: float, world: World) -> float:
    """The largest `value` of any rank; a collective call."""
    if world.size == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64, device=world.device)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return float(box)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an allocator's refusal, of a GPU or of the machine."""
    is_refusal = isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_REFUSALS)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or is_refusal
