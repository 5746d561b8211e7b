"""A U-Net over a whole volume: windows in batches against one at a time."""

import math
from typing import Any

import torch

from data_prep.phantom import generate_subject
from vesselgan.config.compose import compose
from vesselgan.config.schema import Benchmark
from vesselgan.formats.intensities import intensity_limits, scale_to_255
from vesselgan.models.unet import Unet
from vesselgan.runtime import distributed
from vesselgan.segmentation.sliding_window import probability_map
from vesselgan.tools.benchmark.interleave import interleave
from vesselgan.tools.benchmark.loader import PERCENTILES, SPACING_MM, shape_of


def run(config: Benchmark) -> dict[str, Any]:
    """Seconds of one phantom volume through the paper's U-Net, untrained, with `batch_size` windows at a time and with
    one, and their ratio; windows overlap as in `vesselgan segment`."""
    torch.set_num_threads(config.threads)
    device = distributed.choose_device(config.runtime.device, 0)
    settings = compose("segment", ["run=none", "out=none"])
    unet = compose("train_unet", []).unet
    network = Unet(tuple(unet.filters), unet.dropout).to(device).eval()
    image_XYZ, _, _, _ = generate_subject(config.seed, shape_of(config.shape), SPACING_MM)
    scaled_XYZ = scale_to_255(image_XYZ, intensity_limits(image_XYZ, PERCENTILES))

    def segment(batch_size: int) -> None:
        patch_shape, overlap = config.patch_shape, settings.overlap
        probability_map(
            network, scaled_XYZ, patch_shape=patch_shape, overlap=overlap, batch_size=batch_size, scaling="volume"
        )

    candidates = {"batches": lambda number: segment(config.batch_size), "one_at_a_time": lambda number: segment(1)}
    timings = interleave(candidates, config.repeats)
    windows = [
        math.ceil(s / (p * (1 - settings.overlap))) for s, p in zip(config.shape, config.patch_shape, strict=True)
    ]
    return {
        "shape": list(config.shape),
        "patch_shape": list(config.patch_shape),
        "batch_size": config.batch_size,
        "windows_at_most": math.prod(windows),
        **{name: {"cpu_s": timing.cpu_s, "wall_s": timing.wall_s} for name, timing in timings.items()},
        "ratio_wall": timings["one_at_a_time"].wall_s / timings["batches"].wall_s,
    }
