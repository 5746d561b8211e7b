"""Which precision trains fastest on this machine, by a short probe.

python -m vesselgan.training.precision_probe --out FILE [--device auto|cpu|cuda]
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from vesselgan.config.compose import compose
from vesselgan.core.errors import ResourceError, exit_on_error
from vesselgan.formats.run_dir import write_json
from vesselgan.losses.gradient_penalty import gradient_penalty
from vesselgan.losses.wasserstein import critic_loss, generator_loss
from vesselgan.models.blocks import init_weights
from vesselgan.models.variants import build_networks
from vesselgan.runtime.precision import torch_type

STEPS = 4
MARGIN = 1.25
"""How much faster bf16 must be on a CPU: its optimizer keeps copies in fp32, which the probe leaves out."""


def probe_precision(device: str) -> dict[str, object]:
    """The precision for a training run on `device` (`auto`, `cpu`, `cuda`), with the step times in ms behind it.

    A GPU gets fp16, as in the paper. A CPU gets bf16 where that is clearly faster, else fp32: native fp16
    convolutions are slower there by orders of magnitude. Raises ResourceError when `cuda` is asked for and missing.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device=cuda: PyTorch sees no GPU; check the driver, or take device=cpu")
    if device != "cpu" and torch.cuda.is_available():
        return {"device": "cuda", "num_devices": torch.cuda.device_count(), "precision": "fp16", "step_ms": {}}
    step_ms = {name: measure_step_ms(torch_type(name)) for name in ("fp32", "bf16")}
    return {
        "device": "cpu",
        "num_cores": len(os.sched_getaffinity(0)),
        "precision": "bf16" if MARGIN * step_ms["bf16"] < step_ms["fp32"] else "fp32",
        "step_ms": {name: round(ms, 3) for name, ms in step_ms.items()},
    }


def measure_step_ms(dtype: torch.dtype) -> float:
    """Fastest of a few of the demo's GAN steps, optimizer apart, in ms; weights in `dtype`."""
    config = compose("train_gan", ["variant=sn_mp", "preset=demo"])
    shape = compose("build_shards", []).data.prepare.patch_shape
    variant, batch = config.variant, config.train.batch_size
    networks = build_networks(variant, shape)
    for network in networks.values():
        init_weights(network, 0)
        network.to(dtype)
    critic: Any = networks["critic"]
    generator = networks["generator"]
    real_NCXYZ = torch.rand(batch, 2, *shape, dtype=dtype)
    times = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        latent_NL, epsilon_N = torch.randn(batch, variant.latent_size, dtype=dtype), torch.rand(batch)
        fake_NCXYZ = generator(latent_NL)
        loss = critic_loss(critic(real_NCXYZ), critic(fake_NCXYZ.detach()))
        penalty = gradient_penalty(
            critic.input_gradient, real_NCXYZ, fake_NCXYZ, epsilon=epsilon_N, weight=variant.penalty_weight
        )
        (loss + penalty.value).backward()
        generator_loss(critic(fake_NCXYZ)).backward()
        times.append(1000 * (time.perf_counter() - started))
    # The first step allocates what later ones reuse.
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the result there, as JSON")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    result = probe_precision(options.device)
    if options.out is not None:
        write_json(options.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    exit_on_error(main)
