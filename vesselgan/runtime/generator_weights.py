"""The weights that a run's generator is sampled with: which tensors of a checkpoint, and what identifies them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vesselgan.config.schema import Variant
from vesselgan.core.errors import UsageError
from vesselgan.formats.checkpoint_folder import EMA, STANDING, name_of
from vesselgan.runtime.checkpoint import read_weights

FILES = {"standing": ("generator", STANDING), "running": ("generator",), "ema": (EMA,)}
"""The choices of `weights` -> the tensors of a checkpoint; later ones replace earlier ones of the same name."""


@dataclass(frozen=True)
class GeneratorWeights:
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """The checkpoint's."""
    checkpoint: str
    name: str
    """One of FILES."""

    @property
    def sha256(self) -> str:
        """Over names and values."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(name.encode())
            digest.update(self.tensors[name].contiguous().numpy())  # type: ignore[arg-type]
        return digest.hexdigest()


def read_generator_weights(
    run_dir: Path, variant: Variant, name: str | None, checkpoint: str | None
) -> GeneratorWeights:
    """Of `checkpoint`, or of the newest complete one; without a name `ema` where there is one, else `standing`.

    Raises UsageError for another name, CheckpointError for weights that are missing or damaged.
    """
    if name not in (None, *FILES):
        raise UsageError(f"weights={name!r} is not one of {', '.join(FILES)}")
    if name == "ema" and variant.ema_decay is None:
        raise UsageError(f"weights=ema: {run_dir} keeps no average of its weights (variant.ema_decay=null)")
    if name is None:
        name = "standing" if variant.ema_decay is None else "ema"
    tensors: dict[str, Tensor] = {}
    for file in FILES[name]:
        part, state = read_weights(run_dir, file, checkpoint)
        tensors |= part
        checkpoint = name_of(state["step"])  # the same for all parts, though a run may just write a newer one
    return GeneratorWeights(tensors, state, name_of(state["step"]), name)
