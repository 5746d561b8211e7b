"""Limits of this process that otherwise end a job minutes later, under another name. Standard library alone."""

import importlib.util
import os
import resource
import tempfile

MAX_SOCKET_PATH = 107
"""Bytes of a socket's path (sockaddr_un)."""
SOCKET_NAME = "/pymp-12345678/listener-12345678"
"""What multiprocessing puts below TMPDIR, for data workers that hand over tensors."""
MIN_OPEN_FILES = 256
"""Of a rank: libraries, logs, workers' pipes, and the shards that a set keeps open."""


def problems(*, uses_gpu: bool) -> list[str]:
    """What would end a job on this machine, each with its remedy; empty if nothing would."""
    found = []
    folder = tempfile.gettempdir()
    longest = MAX_SOCKET_PATH - len(SOCKET_NAME)
    if len(os.fsencode(folder)) > longest:
        found.append(f"TMPDIR={folder} is too long for sockets: export TMPDIR of at most {longest} bytes")
    open_files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files not in (resource.RLIM_INFINITY, -1) and open_files < MIN_OPEN_FILES:
        found.append(f"{open_files} open files are too few: ulimit -n {MIN_OPEN_FILES} (the hard limit is {hard})")
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    is_numbers = all(name.strip().isdigit() for name in devices.split(",") if name.strip())
    # With pynvml DeepSpeed reads them as numbers.
    if uses_gpu and not is_numbers and importlib.util.find_spec("pynvml") is not None:
        found.append(
            f"CUDA_VISIBLE_DEVICES={devices} is not numbers, which DeepSpeed needs: give those of nvidia-smi -L"
        )
    return found
