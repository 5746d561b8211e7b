"""The settings of `vesselgan generate`: patches, or whole volumes."""

from dataclasses import dataclass, field

from vesselgan.config.checks import NOT_NEGATIVE, POSITIVE, THREE_SIZES, THRESHOLD, WEIGHTS, read_if, rule
from vesselgan.config.training_schema import Runtime

OF_PATCHES = read_if(lambda c: c.volumes is None, "volumes=null")
OF_VOLUMES = read_if(lambda c: c.volumes is not None, "volumes=N")


@dataclass
class Generate:
    run: str
    """Run directory of a GAN or a flow."""
    checkpoint: str | None
    num_patches: int = field(metadata=POSITIVE | OF_PATCHES)
    """How many pairs (paper: 11,750 for a U-Net)."""
    seed: int = field(metadata=NOT_NEGATIVE)
    weights: str | None = field(metadata=WEIGHTS)
    """`standing`: the last weights with standing statistics of BatchNorm, re-estimated; `running`: with the statistics
    of training; `ema`: the weights' moving average with standing statistics (variant.ema_decay); null: `ema` where the
    variant keeps one, else `standing`."""
    label_threshold: float | None = field(metadata=THRESHOLD | OF_PATCHES)
    """Score from which a voxel is vessel in stored and in NIfTI labels, and which the manifest recommends to readers;
    null: the one whose labels are most like the training labels, the variant's for private runs. Refused for a run that
    is given its labels."""
    batch_size: int = field(metadata=POSITIVE)
    nifti: bool = field(metadata=OF_PATCHES)
    """Write every pair as NIfTI too, into OUT/nifti."""
    volumes: int | None = field(metadata=POSITIVE)
    """Make so many whole heads in place of patches, as a cohort of NIfTI images, labels and brain masks: the tree from
    a procedure, the image by a flow that is given it (variant.condition); null: patches."""
    shape: list[int] = field(metadata=THREE_SIZES | OF_VOLUMES)
    """Voxels of a head."""
    spacing_mm: list[float] | None = field(metadata=THREE_SIZES | OF_VOLUMES)
    """Edges of its voxels; null: the training patches'."""
    noise: list[float] = field(
        metadata=rule(lambda v: len(v) == 2 and 0 <= v[0] <= v[1] <= 255, "must be two numbers from 0 to 255, rising")
        | OF_VOLUMES
    )
    """Range of Gaussian noise that is added inside a head (standard deviation, grey levels of 255; even over heads):
    for U-Nets that are to read noisier scanners than the generator learned from."""
    out: str | None
    """Folder of the new shards or volumes; null: RUN/synthetic or RUN/synthetic_volumes."""
    runtime: Runtime
