"""The forms of the upsampling convolution, layer by layer, against upsampling first: which one is fastest here."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vesselgan.config.schema import Benchmark
from vesselgan.models.upsampling import FASTEST, FORMS, Form
from vesselgan.runtime import distributed
from vesselgan.tools.benchmark.interleave import interleave
from vesselgan.tools.benchmark.step import TYPES, wait

# N batch, I O channels in and out, X Y Z voxels


def run(config: Benchmark) -> dict[str, Any]:
    """Per layer of the variant's generator: milliseconds of every form, forward and backward, and the fastest.

    `in_use` is what models/upsampling.py takes on this device; where another one is faster, change its table.
    """
    torch.set_num_threads(config.threads)
    device = distributed.choose_device(config.runtime.device, 0)
    dtype, width = TYPES[config.variant.precision], config.variant.width
    channels = [width, width // 2, width // 4, width // 8]
    layers = {}
    for level, (before, after) in enumerate(pairwise(channels)):
        sides = [side // 8 * 2**level for side in config.patch_shape]
        x = torch.randn(config.batch_size, before, *sides, device=device, dtype=dtype)
        weight = torch.randn(after, before, 3, 3, 3, device=device)
        layers[f"{before} to {after} at {'x'.join(map(str, sides))}"] = _compare(x, weight, config.repeats)
    in_use = next(name for name, form in FORMS.items() if form is FASTEST[device.type])
    facts = {"precision": config.variant.precision, "device": device.type, "batch_size": config.batch_size}
    return facts | {"threads": config.threads, "in_use": in_use, "layers": layers}


def _compare(x_NIXYZ: Tensor, weight: Tensor, repeats: int) -> dict[str, Any]:
    x_NIXYZ = x_NIXYZ.contiguous(memory_format=torch.channels_last_3d).requires_grad_(True)
    weight.requires_grad_(True)
    steps: dict[str, Callable[[int], None]] = {
        name: partial(_forward_and_backward, form, x_NIXYZ, weight)
        for name, form in ({"upsampling first": _plain} | FORMS).items()
    }
    costs = interleave(steps, repeats)
    spent = {n: cost.wall_s if x_NIXYZ.device.type == "cuda" else cost.cpu_s for n, cost in costs.items()}
    return {"ms": {name: 1e3 * s for name, s in spent.items()}, "fastest": min(spent, key=lambda name: spent[name])}


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv3d(F.interpolate(x, scale_factor=2, mode="nearest"), weight.to(x.dtype), bias, padding=1)


def _forward_and_backward(form: Form, x: Tensor, weight: Tensor, _number: int) -> None:
    # The next layer wants channels last, so a form that yields another layout pays for the change.
    y = form(x, weight, None).contiguous(memory_format=torch.channels_last_3d)
    torch.autograd.grad(y, (x, weight), y.detach())
    wait(x.device)
