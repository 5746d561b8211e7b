"""The training step's time and memory on this device, beside the authors' step and by batch size; its largest parts.

Every part returns its measurements. On a GPU the networks have full size, on a CPU one that takes seconds.
Shapes: N batch, C channel, X Y Z voxels, L latent.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vesselgan.config.compose import compose
from vesselgan.config.schema import Benchmark
from vesselgan.models.upsampling import UpsampleConv3d
from vesselgan.runtime import distributed
from vesselgan.runtime.device_memory import peak_bytes
from vesselgan.runtime.precision import torch_type
from vesselgan.tools.benchmark import step
from vesselgan.tools.benchmark.interleave import interleave

BATCH_SIZES = (4, 8, 16)
Network = Callable[[Tensor], Tensor]


def full_size(config: Benchmark, variant: str) -> tuple[Benchmark, torch.device]:
    """The benchmark of `variant` in the precision of `config`, and its device; small and in fp32 on a CPU."""
    device = distributed.choose_device(config.runtime.device, 0)
    chosen = compose("benchmark", ["target=acceptance", f"variant={variant}"]).variant
    named = replace(chosen, precision=config.variant.precision)
    if device.type == "cpu":
        config = replace(config, patch_shape=[32, 32, 16], repeats=1)
        named = replace(named, width=16, precision="fp32")
    distributed.select_kernels(deterministic=False)
    return replace(config, variant=named), device


def step_of(variant: str, config: Benchmark) -> dict[str, Any]:
    """`benchmark target=step`: the authors' step and ours, interleaved."""
    return step.run(full_size(config, variant)[0])


def batch_sizes(config: Benchmark) -> dict[str, Any]:
    """Milliseconds and peak GiB of a step by batch size."""
    config, device = full_size(config, "sn_mp")
    result = {}
    for batch_size in BATCH_SIZES:
        take_step = step.engines_and_step(replace(config, batch_size=batch_size))[1]
        timing = interleave({"step": take_step}, config.repeats)["step"]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            take_step(0)
        result[str(batch_size)] = {"wall_ms": 1e3 * timing.wall_s, "peak_gib": peak_bytes(device) / 2**30}
        del take_step
        torch.cuda.empty_cache()
    return result


def convolutions(config: Benchmark) -> dict[str, Any]:
    """Milliseconds of the widest upsampling convolution, forward and backward, by form and memory layout."""
    config, device = full_size(config, "sn_mp")
    width, dtype = config.variant.width, torch_type(config.variant.precision)
    layer = UpsampleConv3d(width // 2, width // 4).to(device, dtype)
    x_NCXYZ = torch.randn(config.batch_size, width // 2, *(s // 4 for s in config.patch_shape), device=device).to(dtype)
    last_NCXYZ = x_NCXYZ.contiguous(memory_format=torch.channels_last_3d)
    candidates = {
        "in use, channels last": partial(_forward_and_backward, layer, last_NCXYZ),
        "in use, contiguous": partial(_forward_and_backward, layer, x_NCXYZ),
        "upsampling first, channels last": partial(_forward_and_backward, partial(_upsample_first, layer), last_NCXYZ),
        "upsampling first, contiguous": partial(_forward_and_backward, partial(_upsample_first, layer), x_NCXYZ),
    }
    return _wall_ms(candidates, config.repeats)


def _forward_and_backward(layer: Network, x_NCXYZ: Tensor, _round: int) -> None:
    layer(x_NCXYZ.detach().requires_grad_(True)).float().sum().backward()
    step.wait(x_NCXYZ.device)


def _upsample_first(layer: UpsampleConv3d, x_NCXYZ: Tensor) -> Tensor:
    return F.conv3d(F.interpolate(x_NCXYZ, scale_factor=2, mode="nearest"), layer.weight, layer.bias, padding=1)


def sampling(config: Benchmark) -> dict[str, Any]:
    """Milliseconds of a batch of samples: as it is, compiled (torch.compile), and on a GPU replayed as a CUDA graph."""
    config, device = full_size(config, "sn_mp")
    generator = step.networks_of(config)[1].eval().to(device, torch_type(config.variant.precision))
    z_NL = torch.randn(config.batch_size, config.variant.latent_size, device=device)
    candidates = {
        "plain": partial(_sample, generator, z_NL),
        "compiled": partial(_sample, torch.compile(generator), z_NL),
    }
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        _sample(generator, z_NL, 0)
        with torch.inference_mode(), torch.cuda.graph(graph):
            generator(z_NL)
        candidates["CUDA graph"] = partial(_replay, graph, device)
    return _wall_ms(candidates, config.repeats)


def _sample(generator: Network, z_NL: Tensor, _round: int) -> None:
    with torch.inference_mode():
        generator(z_NL)
    step.wait(z_NL.device)


def _replay(graph: torch.cuda.CUDAGraph, device: torch.device, _round: int) -> None:
    graph.replay()
    step.wait(device)


def _wall_ms(candidates: Mapping[str, Callable[[int], None]], rounds: int) -> dict[str, Any]:
    return {name: {"wall_ms": 1e3 * timing.wall_s} for name, timing in interleave(candidates, rounds).items()}


PARTS: dict[str, Callable[[Benchmark], dict[str, Any]]] = {
    "SN-MP": partial(step_of, "sn_mp"),
    "c-SN-MP": partial(step_of, "c_sn_mp"),
    "upsampling convolution": convolutions,
    "sampling": sampling,
    "batch sizes": batch_sizes,
}
