"""Settings of a cohort: where it lies, how it is split, prepared, preprocessed and read; the phantom.

A command's `data` holds what that command reads: a setting that it lacks is refused.
"""

from dataclasses import dataclass, field
from typing import Any

from vesselgan.config.checks import (
    MAX_PATCHES,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    THREE_SIZES,
    THRESHOLD,
    one_of,
    read_if,
    rule,
)
from vesselgan.core.names import is_id


@dataclass
class Layout:
    """Where a cohort keeps a subject's files: patterns below data.root, `{subject}` standing for the subject's id,
    `{session}` for one of several visits, `*` for anything inside one name, `{a,b}` for one of several texts, `[...]`
    for a part that may be absent. One that begins with `?` is for a kind that the whole cohort may lack."""

    image: str
    """The angiogram."""
    label: str | None
    """Its vessel label; null: none (such a cohort is only segmented)."""
    mask: str | None
    """Brain mask; null: none (intracranial scores are then refused)."""
    dataset_json: str | None = None
    """nnU-Net's dataset.json below data.root, which says what label values mean; null: data.prepare.label_values
    does."""


DRAWN = NOT_NEGATIVE | read_if(lambda c: c.data.prepare.split.csv is None, "data.prepare.split.csv=null")


@dataclass
class Split:
    """How subjects are divided. Numbers of subjects; train or test may be null: all that the others leave."""

    train: int | None = field(metadata=DRAWN)
    """0 for an external cohort, on which models of another one are only tested."""
    validation: int = field(metadata=DRAWN)
    """Subjects on which checkpoints, thresholds and settings are chosen."""
    test: int | None = field(metadata=DRAWN)
    """Subjects that nothing is chosen on."""
    seed: int = field(metadata=DRAWN)
    csv: str | None
    """A file with the columns subject,split, and no other, instead of a draw; a third, patient, may say whose visit a
    subject is where its id does not (dp.unit=patient)."""


@dataclass
class Data:
    """A prepared cohort."""

    name: str = field(
        metadata=rule(
            lambda v: is_id(v) and v == v.strip(" -"),
            "must be a plain name of one folder",
        )
    )
    """What the cohort is called: in results, in reports, and by default as its folder below work_dir."""
    cohort_dir: str
    """Its folder: cohort.json, shards/gan/<split>, shards/unet/<split>."""


@dataclass
class SourceData(Data):
    """A cohort as NIfTI files."""

    root: str
    """Folder of the NIfTI files."""
    layout: Layout


@dataclass
class Prepare:
    """How volumes are checked, scaled and cut; belongs to the cohort, so it stands in its data/*.yaml."""

    patch_shape: list[int] = field(metadata=THREE_SIZES)
    """Voxels per axis; the paper 128 x 128 x 64."""
    grid_patches: list[str] = field(
        metadata=rule(lambda v: set(v) <= {"gan", "unet"}, "must name gan, unet, both or none")
    )
    """Purposes that also get the grid that covers the volume: `gan` (the paper's), `unet`."""
    num_vessel_patches_gan: int = field(
        metadata=rule(lambda v: 0 <= v <= MAX_PATCHES, f"must lie between 0 and {MAX_PATCHES}")
    )
    """Patches per subject centred on a vessel, beside the grid (paper: 32 beside 18)."""
    num_vessel_patches_unet: int = field(
        metadata=rule(lambda v: 1 <= v <= MAX_PATCHES, f"must lie between 1 and {MAX_PATCHES}")
    )
    """Patches per subject centred on a vessel for the U-Net (paper: 250)."""
    lower_percentile: float = field(metadata=rule(lambda v: 0 <= v < 50, "must lie between 0 and 50, below 50"))
    """Percentile of the non-zero voxels that becomes 0; 0: their minimum. Above the share of a padding value."""
    upper_percentile: float = field(metadata=rule(lambda v: 50 < v <= 100, "must lie above 50, at most 100"))
    """Percentile of the non-zero voxels that becomes 255; high enough not to flatten vessels."""
    max_clipped_vessel_share: float = field(metadata=SHARE)
    """`check` fails when a larger share of the vessel voxels lies outside the limits."""
    split: Split
    label_values: list[int] | None = field(
        metadata=rule(lambda v: len(v) > 0 and 0 not in v, "must name a value, and not 0, which is background")
    )
    """Label values that mean vessel, for labels of several classes; null: a binary label."""
    label_binarize_threshold: float | None = field(metadata=POSITIVE)
    """Vessel where the label is at least this, for soft labels; null: a soft label is an error."""
    nan_value: float | None
    """Replaces NaN and infinite voxels; null: such a volume is an error."""
    reflect_pad: bool
    """Reflect a volume thinner than the patch at its far edge; false: such a volume is an error."""
    pairs_per_shard: int = field(metadata=POSITIVE)
    """At most so many pairs in one HDF5 file."""
    follow_links: bool
    """Read volumes that a link places outside data.root; false: such a link is an error."""
    quarantine: bool
    """Leave unusable subjects out and continue; false: stop (exit 3)."""
    repair: bool
    """Rebuild the shards that fail verification."""
    pseudonymise: bool
    """Replace subjects' ids by a keyed hash in everything that is written; file paths go to a private file."""
    key_file: str | None = field(
        metadata=read_if(lambda c: c.data.prepare.pseudonymise, "data.prepare.pseudonymise=true")
    )
    """Path of the secret that the hash needs; read, never stored."""
    seed: int = field(metadata=NOT_NEGATIVE)

    @property
    def percentiles(self) -> tuple[float, float]:
        """Of the non-zero voxels, that become 0 and 255."""
        return self.lower_percentile, self.upper_percentile


@dataclass
class PreparedData(SourceData):
    """A cohort as NIfTI files, in the same settings for check, preprocess and build-shards; each reads its part of
    `prepare`."""

    prepare: Prepare


SCALING = one_of("volume", "patch")


@dataclass
class TrainingData(Data):
    scaling: str = field(metadata=SCALING)
    """`volume`: limits per volume, stored in the record; `patch`: the authors' min-max per patch, applied when read."""
    augment: bool
    """Flip and rotate training patches at random (by seed and position); the paper does not."""
    cache_gib: float = field(
        metadata=NOT_NEGATIVE | read_if(lambda c: _num_workers(c) == 0, "num_workers=0 of train or unet")
    )
    """Keep patches in memory when all of them fit into so many GiB (3 bytes a voxel: the paper's 2,350 are 7.4 GB);
    each rank has its own. Read with train.num_workers=0 (unet.num_workers=0) alone: readers of their own have none."""
    local_copy_dir: str | None
    """Folder on each node's own disk to which the shards are copied, once per node and verified, and read from; may
    name a variable of the node, '$TMPDIR'. Null: read where they are."""


def _num_workers(config: Any) -> int:
    """Of a command that trains GANs or U-Nets."""
    return int((config.unet if hasattr(config, "unet") else config.train).num_workers)


@dataclass
class GanData(TrainingData):
    label_threshold: float = field(metadata=THRESHOLD)
    """Of the sample images that a run writes; the real labels that it learns from need none."""


@dataclass
class LearningData(TrainingData):
    label_threshold: float | None = field(
        metadata=THRESHOLD | read_if(lambda c: c.data.source != "real", "data.source=synthetic or both")
    )
    """Stored scores from this on are vessel in synthetic labels (paper: 0.3); null: as their manifest recommends."""
    source: str = field(metadata=one_of("real", "synthetic", "both"))
    """`real`, `synthetic` or `both`."""
    shuffle_labels: bool
    """The control: every image gets another patch's label."""


OF_IMAGES = read_if(lambda c: c.evaluate == "image", "evaluate=image")


@dataclass
class EvaluationData(Data):
    scaling: str = field(metadata=SCALING | OF_IMAGES)
    """As in training."""
    label_threshold: float | None = field(metadata=THRESHOLD | OF_IMAGES)
    """Of synthetic labels; null: as their manifest recommends."""


@dataclass
class ReportData(Data):
    label_threshold: float | None = field(metadata=THRESHOLD)
    """Of the synthetic patches that are shown; null: a study's choice, else that of the best U-Net that learned from
    them, else their manifest's."""


@dataclass
class DemoData(SourceData):
    scaling: str = field(metadata=SCALING)
    """As in training."""
    label_threshold: float | None = field(metadata=THRESHOLD)
    """That the synthetic patches are generated with."""


DENOISED = read_if(lambda c: c.preprocess.denoise, "preprocess.denoise=true")
BIAS_CORRECTED = read_if(lambda c: c.preprocess.bias, "preprocess.bias=true")


@dataclass
class Preprocessing:
    """Preprocessing of volumes (paper, section 2.2: denoised, non-uniformity corrected, BET)."""

    denoise: bool
    """Non-local means."""
    denoise_strength: float = field(metadata=POSITIVE | DENOISED)
    """Cut-off of patch distances, in noise standard deviations."""
    denoise_patch: int = field(
        metadata=rule(lambda v: v >= 3 and v % 2 == 1, "must be an odd number from 3 on") | DENOISED
    )
    """Edge of the patches that are compared, voxels."""
    denoise_distance: int = field(metadata=POSITIVE | DENOISED)
    """How far away patches are looked for, voxels."""
    bias: bool
    """N4 non-uniformity correction."""
    bias_shrink: int = field(metadata=POSITIVE | BIAS_CORRECTED)
    """The bias field is fitted on the volume shrunk by this factor."""
    bias_iterations: list[int] = field(
        metadata=rule(lambda v: len(v) > 0 and all(n > 0 for n in v), "must be counts above 0") | BIAS_CORRECTED
    )
    """At most so many per resolution level, coarse to fine."""
    spacing_mm: list[float] | None = field(metadata=THREE_SIZES)
    """Resample to this spacing; null: every volume keeps its own."""
    mask: str = field(metadata=one_of("auto", "given", "bet", "deepbet", "none"))
    """Source of the brain mask: `given` (data.layout.mask), `bet` (FSL), `deepbet`, `none`, or `auto`: the first of
    the three that is available."""
    bet_fraction: float = field(
        metadata=SHARE | read_if(lambda c: c.preprocess.mask in ("auto", "bet"), "preprocess.mask=bet or auto")
    )
    """FSL bet's -f (paper: 0.05)."""


@dataclass
class Phantom:
    """A synthetic full-head TOF cohort."""

    num_subjects: int = field(metadata=POSITIVE)
    """How many heads."""
    shape: list[int] = field(metadata=THREE_SIZES)
    """Voxels of a volume along X, Y, Z."""
    spacing_mm: list[float] = field(metadata=THREE_SIZES)
    """Edges of a voxel."""
    seed: int = field(metadata=NOT_NEGATIVE)
    slab_mm: float = field(metadata=POSITIVE)
    """Height of one slab of the scan, in mm of a head of adult size."""
    bias: float = field(metadata=NOT_NEGATIVE)
    """Standard deviation of the logarithm of the bias field."""
    noise: list[float] = field(
        metadata=rule(lambda v: len(v) == 2 and 0 <= v[0] <= v[1], "must be two values from 0 on, the smaller first")
    )
    """Range of a subject's noise (standard deviation, share of the brain's intensity)."""
    point_spread_voxels: float = field(metadata=NOT_NEGATIVE)
    """Standard deviation of the point spread."""
    trees: str = field(metadata=one_of("steered", "spanning"))
    """How arteries branch: steered along the brain's surface, or the shortest wires that join points on it."""
