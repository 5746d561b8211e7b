"""A U-Net over a whole volume: windows in batches against one at a time."""

import math
from typing import Any

import torch

from data_prep.phantom import generate_subject
from vesselgan.config.compose import compose
from vesselgan.config.schema import Benchmark
from vesselgan.formats import volumes
from vesselgan.models.unet import Unet
from vesselgan.runtime import distributed
from vesselgan.segmentation.sliding_window import probability_map
from vesselgan.tools.benchmark.interleave import interleave
from vesselgan.tools.benchmark.loader import SPACING_MM, UPPER_PERCENTILE


def run(config: Benchmark) -> dict[str, Any]:
    """Seconds of one phantom volume through the paper's U-Net, untrained: `batch_size` windows at a time and one at a
    time, and their ratio; windows of the patch's size that overlap as in launch/segment.py."""
    torch.set_num_threads(config.threads)
    device = distributed.choose_device(config.runtime.device, 0)
    settings = compose("segment", ["run=none", "out=none"])
    unet = compose("train_unet", []).unet
    network = Unet(tuple(unet.filters), unet.dropout).to(device).eval()
    image_XYZ, _, _, _ = generate_subject(config.seed, tuple(config.shape), SPACING_MM)
    scaled_XYZ = volumes.scale_to_255(image_XYZ, volumes.intensity_limits(image_XYZ, UPPER_PERCENTILE))

    def segment(batch_size: int) -> None:
        patch_shape, overlap = config.patch_shape, settings.overlap
        probability_map(
            network, scaled_XYZ, patch_shape=patch_shape, overlap=overlap, batch_size=batch_size, scaling="volume"
        )

    sizes = {"batches": config.batch_size, "one_at_a_time": 1}
    costs = interleave({name: lambda number, size=size: segment(size) for name, size in sizes.items()}, config.repeats)
    facts = {name: {"cpu_s": cost.cpu_s, "wall_s": cost.wall_s} for name, cost in costs.items()}
    windows = [
        math.ceil(s / (p * (1 - settings.overlap))) for s, p in zip(config.shape, config.patch_shape, strict=True)
    ]
    return {
        "shape": list(config.shape),
        "patch_shape": list(config.patch_shape),
        "batch_size": config.batch_size,
        "windows_at_most": math.prod(windows),
        **facts,
        "ratio_wall": costs["one_at_a_time"].wall_s / costs["batches"].wall_s,
    }
