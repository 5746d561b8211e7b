"""Which precision trains fastest here: asked of the machine by a short probe, never assumed.

python -m vesselgan.runtime.precision --out FILE [--device auto|cpu|cuda]
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from vesselgan.errors import ResourceError, exit_on_error
from vesselgan.runtime.rundir import write_json

# Small enough for a second, large enough that convolutions decide: two patches at the demo's widths.
BATCH, CHANNELS, SIDE = 2, 64, 16
STEPS = 3
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def probe_precision(device: str) -> dict[str, object]:
    """The precision for a training run on `device` (`auto`, `cpu`, `cuda`), with the times in ms that decided.

    A GPU gets fp16, as in the paper. A CPU gets fp32 or bf16, whichever is faster: native fp16 convolutions are
    slower there by orders of magnitude. ResourceError when `cuda` is asked for and missing.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("cuda was asked for and PyTorch sees no GPU: check the driver, or ask for cpu")
    if device != "cpu" and torch.cuda.is_available():
        return {"device": "cuda", "num_devices": torch.cuda.device_count(), "precision": "fp16", "step_ms": {}}
    step_ms = {name: measure_step_ms(kind) for name, kind in TYPES.items()}
    return {
        "device": "cpu",
        "num_devices": 0,
        "precision": min(step_ms, key=lambda name: step_ms[name]),
        "step_ms": {name: round(ms, 3) for name, ms in step_ms.items()},
    }


def measure_step_ms(kind: torch.dtype) -> float:
    """Fastest of a few steps of two convolutions with a penalty on their input's gradient, in ms; weights in `kind`."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1)
    ).to(kind)
    patch_NCXYZ = torch.randn(BATCH, CHANNELS, SIDE, SIDE, SIDE, dtype=kind)
    times = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        x_NCXYZ = patch_NCXYZ.clone().requires_grad_(True)
        score = functional.leaky_relu(layers(x_NCXYZ)).float().mean()
        (slope_NCXYZ,) = torch.autograd.grad(score, x_NCXYZ, create_graph=True)
        (score + slope_NCXYZ.float().square().sum()).backward()
        times.append(1000 * (time.perf_counter() - started))
    # The first step pays for what later ones reuse.
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the answer there, as JSON")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    found = probe_precision(options.device)
    if options.out is not None:
        write_json(options.out, found)
    print(json.dumps(found))


if __name__ == "__main__":
    exit_on_error(main)
