"""Versions, hardware and time of a run; kept in the run directory, not in exports."""

import importlib.metadata
import os
import platform
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vesselgan.config import project
from vesselgan.core.version import __version__

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "deepspeed", "numpy", "h5py", "nibabel", "hydra-core", "monai")


def collect() -> dict[str, Any]:
    """Versions of the packages, the processor or GPU, the project file, the command and the time (UTC)."""
    torch = sys.modules.get("torch")  # a job without it uses no GPU, and need not wait seconds for it
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "vesselgan": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": {"gpu": gpu, "cpu": _cpu_name(), "cores": os.cpu_count()},
        "project": project.record(),
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: "torch.device") -> str:
    """The name of the GPU or processor."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
