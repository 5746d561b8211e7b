"""Settings of a cohort: where it lies, how it is split, prepared, preprocessed and read; the phantom."""

from dataclasses import dataclass


@dataclass
class Layout:
    """Where a cohort keeps a subject's files: patterns below data.root, `{subject}` standing for the subject's id,
    `{session}` for one of several visits, `*` for anything inside one name."""

    image: str
    label: str | None
    mask: str | None
    """Brain mask; null: none (intracranial scores are then refused)."""


@dataclass
class Split:
    """How subjects are divided. Numbers of subjects; train or test may be null: all that the others leave."""

    train: int | None
    """0 for an external cohort, on which models of another one are only tested."""
    validation: int
    test: int | None
    seed: int
    csv: str | None
    """A file with the columns subject,split instead of a draw; a further column, patient, says whose visit a subject is
    where its id does not (dp.unit=patient)."""


@dataclass
class Data:
    """A cohort: where it lies and how its patches are read."""

    name: str
    root: str
    """Folder of the NIfTI files."""
    cohort_dir: str
    """Folder of the results: cohort.json, shards/gan/<split>, shards/unet/<split>."""
    layout: Layout
    scaling: str
    """`volume`: limits per volume, stored in the record; `patch`: the authors' min-max per patch, applied when read."""
    label_threshold: float | None
    """Stored scores from this on are vessel in synthetic labels (paper: 0.3); null: as their manifest recommends."""


@dataclass
class Prepare:
    """How volumes are checked, scaled and cut; belongs to the cohort, so it stands in its data/*.yaml."""

    patch_shape: list[int]
    """Voxels per axis; the paper 128 x 128 x 64."""
    grid_patches: list[str]
    """Purposes that also get the grid that covers the volume: `gan` (the paper's), `unet`."""
    num_vessel_patches_gan: int
    """Patches per subject centred on a vessel, beside the grid (paper: 32 beside 18)."""
    num_vessel_patches_unet: int
    """Patches per subject centred on a vessel for the U-Net (paper: 250)."""
    upper_percentile: float
    """Percentile of the non-zero voxels that becomes 255; high enough not to flatten vessels."""
    max_clipped_vessel_share: float
    """`check` fails when a larger share of the vessel voxels lies above the upper limit."""
    split: Split
    label_values: list[int] | None
    """Label values that mean vessel, for labels of several classes; null: a binary label."""
    label_binarize_threshold: float | None
    """Vessel where the label is at least this, for soft labels; null: a soft label is an error."""
    nan_value: float | None
    """Replaces NaN and infinite voxels; null: such a volume is an error."""
    reflect_pad: bool
    """Reflect a volume thinner than the patch at its far edge; false: such a volume is an error."""
    pairs_per_shard: int
    quarantine: bool
    """Leave unusable subjects out and continue; false: stop (exit 3)."""
    repair: bool
    """Rebuild the shards that fail verification."""
    pseudonymise: bool
    """Replace subjects' ids by a keyed hash in everything that is written; file paths go to a private file."""
    key_file: str | None
    """Path of the secret that the hash needs; read, never stored."""
    seed: int


@dataclass
class PreparedData(Data):
    prepare: Prepare


@dataclass
class TrainingData(Data):
    augment: bool
    """Flip and rotate training patches at random (by seed and position); the paper does not."""
    cache_gib: float
    """Keep patches in memory when all of them fit into so many GiB (3 bytes a voxel: the paper's 2,350 are 7.4 GB);
    each rank has its own. Used with train.num_workers=0 (unet.num_workers=0) alone: readers of their own have none."""
    local_copy_dir: str | None
    """Folder on each node's own disk to which the shards are copied, once per node and verified, and read from; may
    name a variable of the node, '$TMPDIR'. Null: read where they are."""


@dataclass
class GanData(TrainingData):
    label_threshold: float
    """Of sample images: a GAN trains on real labels, which have none."""


@dataclass
class LearningData(TrainingData):
    source: str
    """`real`, `synthetic` or `both`."""
    shuffle_labels: bool
    """The control: every image gets another patch's label."""


@dataclass
class Preprocessing:
    """Preprocessing of volumes (paper, section 2.2: denoised, non-uniformity corrected, BET)."""

    denoise: bool
    """Non-local means."""
    denoise_strength: float
    """Cut-off of patch distances, in noise standard deviations."""
    denoise_patch: int
    """Edge of the patches that are compared, voxels."""
    denoise_distance: int
    """How far away patches are looked for, voxels."""
    bias: bool
    """N4 non-uniformity correction."""
    bias_shrink: int
    """The bias field is fitted on the volume shrunk by this factor."""
    bias_iterations: list[int]
    """At most so many per resolution level, coarse to fine."""
    spacing_mm: list[float] | None
    """Resample to this spacing; null: every volume keeps its own."""
    mask: str
    """Source of the brain mask: `given` (data.layout.mask), `bet` (FSL), `deepbet`, `none`, or `auto`: the first of
    the three that is available."""
    bet_fraction: float
    """FSL bet's -f (paper: 0.05)."""


@dataclass
class Phantom:
    """A synthetic full-head TOF cohort."""

    num_subjects: int
    shape: list[int]
    spacing_mm: list[float]
    seed: int
    slab_mm: float
    """Height of one slab of the scan, in mm of a head of adult size."""
    bias: float
    """Standard deviation of the logarithm of the bias field."""
    noise: list[float]
    """Range of a subject's noise (standard deviation, share of the brain's intensity)."""
    point_spread_voxels: float
    """Standard deviation of the point spread."""
