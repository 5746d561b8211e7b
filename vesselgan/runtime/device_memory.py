"""Memory of this rank's device: peak use, limit, and the errors of running out of it."""

import torch

from vesselgan.core import memory

CPU_ALLOCATION_ERRORS = ("can't allocate memory", "not enough memory")


def peak_bytes(device: torch.device) -> int:
    """Peak use so far: of tensors on a GPU (torch.cuda.max_memory_allocated), of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not ru_maxrss of getrusage: it starts at the use of the parent process.
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def reserved_bytes(device: torch.device) -> int:
    """Peak memory reserved: on a GPU with the allocator's cache, as in nvidia-smi."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_bytes(device)


def limit_bytes(device: torch.device) -> int:
    """The GPU's memory, or the machine's within the limits of the process's control groups."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(memory.total_bytes())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is a failed allocation on a GPU or CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in CPU_ALLOCATION_ERRORS)
