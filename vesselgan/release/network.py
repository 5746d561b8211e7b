"""The generator of a release: float32 weights, its architecture and a file that runs it; nothing else of a run."""

import json
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Variant
from vesselgan.core.atomic_io import write_bytes, write_text
from vesselgan.formats.run_dir import RunDir
from vesselgan.models.flow import FlowGenerator
from vesselgan.release import standalone
from vesselgan.synthesis.sampler import TrainedGenerator

WEIGHTS, ARCHITECTURE, CODE = "generator.safetensors", "architecture.json", "generator.py"
OF_TRAINING = "num_batches"
"""The end of the names of buffers that only training reads."""


def write_network(folder: Path, trained: TrainedGenerator, run: str, label_threshold: float) -> None:
    """Writes WEIGHTS, ARCHITECTURE and CODE into `folder`. The critic and the optimizer's state are never read."""
    from safetensors.torch import save

    tensors = {
        name: tensor.contiguous()
        for name, tensor in trained.network.state_dict().items()
        if not name.endswith(OF_TRAINING)
    }
    write_bytes(folder / WEIGHTS, save(tensors))
    settings = _architecture(trained, RunDir(run).config("train_gan").variant, label_threshold)
    write_text(folder / ARCHITECTURE, json.dumps(settings, indent=1) + "\n")
    write_bytes(folder / CODE, Path(standalone.__file__).read_bytes())


def _architecture(trained: TrainedGenerator, variant: Variant, label_threshold: float) -> dict[str, Any]:
    network = trained.network
    shared = {
        "patch_shape": list(trained.patch_shape),
        "spacing_mm": [float(size) for size in trained.state["manifest"]["spacing_mm"]],
        "latent_size": network.latent_size,
        "label_threshold": label_threshold,
        "width": variant.width,
    }
    if isinstance(network, FlowGenerator):
        own = {"num_levels": len(network.downs), "has_position": network.has_position, "num_given": network.num_given}
        return {"kind": "flow", **shared, **own, **(trained.sampling or {})}
    return {"kind": "gan", **shared, "norm": variant.generator_norm}
