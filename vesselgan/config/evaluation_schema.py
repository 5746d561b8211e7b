"""Settings of evaluations of synthetic patches: scores, label threshold."""

from dataclasses import dataclass, field

from vesselgan.config.checks import AT_LEAST_2, EXTRACTOR, NOT_NEGATIVE, POSITIVE, SHA256, SPLITS, one_of, read_if, rule


@dataclass
class ImageScores:
    """How synthetic patches are scored against real ones (evaluate=image)."""

    synthetic: str | None
    """Folder of synthetic shards."""
    reference: str = field(metadata=SPLITS)
    """Split of the real patches: `validation` or `test`, held out; `train` scores against the training patches."""
    extractor: str = field(metadata=EXTRACTOR)
    """`medicalnet`, or `random`: the same network with weights drawn from the seed, comparable with nothing."""
    weights: str | None
    """MedicalNet's file resnet_10_23dataset.pth, or its tensors as .safetensors."""
    weights_sha256: str | None = field(metadata=SHA256)
    """The file's sha256; null: not checked, which the result states."""
    background: str = field(metadata=one_of("noise", "zero"))
    """Replaces voxels of 0 before features are computed: `noise` (the authors' code) or `zero`."""
    num_clusters: int = field(metadata=AT_LEAST_2)
    """Clusters of features for PRD: 10 in the authors' code, 20 in the original."""
    num_runs: int = field(metadata=POSITIVE)
    """Clusterings that a PRD curve is the mean of."""
    num_angles: int = field(metadata=AT_LEAST_2)
    """Points of a PRD curve."""
    max_patches: int | None = field(metadata=AT_LEAST_2)
    """Patches per side; null: as many as the smaller set has."""
    num_seeds: int = field(metadata=POSITIVE)
    """Draws of noise, clusterings and halves that each score is the mean of."""
    seed: int = field(metadata=NOT_NEGATIVE)
    num_pairs: int = field(metadata=POSITIVE)
    """Pairs of patches whose MS-SSIM is averaged."""
    max_label_patches: int | None = field(metadata=AT_LEAST_2)
    """Patches per side whose labels are measured, about 0.3 s each at the paper's size; null: all."""
    batch_size: int = field(metadata=POSITIVE)


OF_MEDICALNET = read_if(lambda c: c.image.extractor == "medicalnet", "image.extractor=medicalnet")


@dataclass
class AuditFeatures:
    """The network in whose features an audit compares images, beside the images themselves."""

    extractor: str | None = field(metadata=EXTRACTOR)
    """`medicalnet`, or `random` weights, which need no file; null: no features are compared."""
    weights: str | None = field(metadata=OF_MEDICALNET)
    """The file of MedicalNet's weights."""
    weights_sha256: str | None = field(metadata=SHA256 | OF_MEDICALNET)
    """SHA-256 that the file must have; null: not compared."""


@dataclass
class StudyImages:
    """The network with which a study scores each GAN's patches (evaluate=image); all null: no image scores."""

    extractor: str | None = field(metadata=EXTRACTOR)
    """`medicalnet`, or `random` weights, which need no file; null: `medicalnet`, once its weights are given."""
    weights: str | None
    """The file of MedicalNet's weights."""
    weights_sha256: str | None = field(metadata=SHA256)
    """SHA-256 that the file must have; null: not compared."""


@dataclass
class LabelThresholds:
    """The choice of a label threshold by statistics of the labels."""

    thresholds: list[float] = field(
        metadata=rule(lambda v: len(v) > 0 and all(0 < t <= 1 for t in v), "must be cuts above 0, at most 1")
    )
    """Candidates (paper: 0.1 to 0.7)."""
    num_narrowed: int = field(metadata=POSITIVE)
    """How many of the closest are named; a study trains a U-Net at each and takes the best on validation."""
    max_patches: int = field(metadata=POSITIVE)
    """Patches per side, taken evenly."""


@dataclass
class LabelSweep(LabelThresholds):
    """Which threshold makes the labels of one synthetic set most like real ones (evaluate=label_threshold)."""

    synthetic: str | None
    """Folder of synthetic shards, whose stored scores are cut."""
