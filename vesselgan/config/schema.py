"""Every setting with its type, unit and origin. The values stand in configs/*.yaml, once; here are none.

One dataclass per verb (the classes whose name is a verb), built from the groups above them.
"""

from dataclasses import dataclass


@dataclass
class Layout:
    """Where a cohort keeps a subject's files: patterns below data.root, `{subject}` standing for the subject's id,
    `{session}` for one of several visits, `*` for anything inside one name."""

    image: str
    label: str | None
    mask: str | None
    """Brain mask; null where there is none (intracranial scores are then refused)."""


@dataclass
class Split:
    """How subjects are divided. Numbers of subjects; train or test may be null: all that the others leave."""

    train: int | None
    """0 for an external cohort, on which models of another one are only tested."""
    validation: int
    test: int | None
    seed: int
    csv: str | None
    """A file with the columns subject,split instead of a draw."""


@dataclass
class Data:
    """A cohort: where it lies and how its patches are read."""

    name: str
    root: str
    """Folder of the NIfTI files."""
    cohort_dir: str
    """Where what is made of them goes: cohort.json, shards/gan/<split>, shards/unet/<split>."""
    layout: Layout
    scaling: str
    """`volume`: limits per volume, stored in the record; `patch`: the authors' min-max per patch, applied when read."""
    label_threshold: float
    """Where a synthetic label begins, on the stored scores (paper: 0.3)."""


@dataclass
class Prepare:
    """How volumes are checked, scaled and cut; belongs to the cohort, so it stands in its data/*.yaml."""

    patch_shape: list[int]
    """Voxels per axis; the paper 128 x 128 x 64."""
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
    label_cut: float | None
    """Vessel where the label is at least this, for soft labels; null: a soft label is an error."""
    nan_value: float | None
    """What stands in for NaN and infinite voxels; null: such a volume is an error."""
    pad_thin: bool
    """Reflect a volume thinner than the patch at its far edge; false: such a volume is an error."""
    pairs_per_shard: int
    quarantine: bool
    """Set unusable subjects aside by name and go on; false: stop (exit 3)."""
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
    """Turn and mirror training patches at random (by seed and position); the paper does not."""


@dataclass
class LearningData(TrainingData):
    source: str
    """`real`, `synthetic` or `both`."""
    shuffle_labels: bool
    """The control: every image gets another patch's label."""


@dataclass
class Variant:
    """One row of the paper's comparison: networks, losses, precision, optimizer."""

    name: str
    width: int
    """Generator channels at the start, critic channels at the end (paper: 512, complex 1024)."""
    latent_size: int
    critic_norm: str
    """`instance` or `spectral`."""
    precision: str
    """`fp32`, `fp16` or `bf16`: the type of weights, activations and gradients; masters are float32."""
    penalty_weight: float
    """lambda of equation 1."""
    penalty_form: str
    """`sample`: one norm and one epsilon per sample (Gulrajani 2017); `batch`: the authors' code."""
    n_critic: int
    """Critic steps, each on a fresh batch, per generator step."""
    learning_rate_critic: float
    learning_rate_generator: float
    betas: list[float]
    """Adam's two decay rates."""


@dataclass
class Train:
    """How long, how large, how often."""

    batch_size: int
    """Samples per step over all ranks: a result does not depend on the number of ranks."""
    batch_per_gpu: int | None
    """Memory cap per rank and micro-step; null: batch_size / ranks."""
    epochs: int
    max_steps: int | None
    """Stop after so many generator steps; null: epochs decide."""
    max_minutes: float | None
    """Save and leave in time for a job that ends so many minutes after the start, to be resumed; null: no limit, or
    Slurm's."""
    seed: int
    log_every: int
    picture_every: int
    checkpoint_every: int
    """Generator steps between checkpoints."""
    keep_last: int
    """Checkpoints kept."""
    ema_decay: float | None
    """Moving average of the generator's weights, per generator step, as another set to sample from; null: none."""
    num_workers: int
    """Processes that read shards; 0: the training process itself."""


@dataclass
class Runtime:
    """The machine."""

    device: str
    """`auto`, `cpu` or `cuda`; asking for a missing one is exit 6."""


@dataclass
class Unet:
    """The segmentation network and its training (Hilbert 2020 as the paper used it)."""

    filters: list[int]
    dropout: float
    learning_rate: float
    betas: list[float]
    precision: str
    batch_size: int
    """Samples per step over all ranks."""
    batch_per_gpu: int | None
    max_steps: int
    """Optimizer steps; the same number for real, synthetic and both, so that sources are compared at equal effort."""
    validate_every: int
    """Steps between validations on the real validation patches; a checkpoint is written at each."""
    patience: int
    """Validations without a better loss before the run stops."""
    seed: int
    log_every: int
    keep_last: int
    num_workers: int


@dataclass
class TrainGan:
    work_dir: str
    run_dir: str | None
    """Null: work_dir/runs/<variant>-<hash of the configuration>."""
    checkpoint: str | None
    """Resume from this checkpoint's name; null: the newest whole one."""
    variant: Variant
    data: TrainingData
    train: Train
    runtime: Runtime


@dataclass
class Generate:
    run: str
    """Run directory of a GAN."""
    checkpoint: str | None
    num_patches: int
    seed: int
    weights: str
    """`standing`: the last weights, BatchNorm statistics re-estimated at rest; `running`: with those collected in
    training; `ema`: the weights' moving average, re-estimated too (train.ema_decay)."""
    threshold: float
    """Label threshold that the manifest recommends to readers and that the NIfTI labels use."""
    batch_size: int
    nifti: bool
    out: str | None
    """Null: run/synthetic."""
    runtime: Runtime


@dataclass
class TrainUnet:
    work_dir: str
    run_dir: str | None
    checkpoint: str | None
    data: LearningData
    unet: Unet
    synthetic: str | None
    """Folder of synthetic shards, for source synthetic and both."""
    runtime: Runtime


@dataclass
class Segment:
    run: str
    """Run directory of a U-Net."""
    checkpoint: str | None
    input: str | None
    """A NIfTI file or a folder of them; null: the cohort's `split`."""
    data: Data
    split: str
    out: str
    threshold: float
    overlap: float
    batch_size: int
    work_dir: str
    runtime: Runtime


@dataclass
class Evaluate:
    evaluate: str
    """`segmentation`: predictions against labels; `threshold`: the best global threshold, fitted on validation."""
    name: str
    """What the result is called in tables."""
    predictions: str | None
    data: Data
    split: str
    work_dir: str
    out: str


@dataclass
class Report:
    results: str
    runs: list[str]
    """Run directories of GANs whose losses and samples are shown."""
    data: Data
    out: str
    work_dir: str


@dataclass
class Plan:
    variant: Variant
    patch_shape: list[int]
    ranks: list[int]
    train: Train


@dataclass
class Demo:
    work_dir: str
    data: Data
    num_patches: int
    """Synthetic patches that the U-Nets learn from."""


@dataclass
class Check:
    work_dir: str
    data: PreparedData
    qc: bool
    """Write the page for the eyes, <cohort_dir>/qc.html."""


@dataclass
class Preprocessing:
    """What is done to volumes before they are cut (paper, section 2.2: denoised, non-uniformity corrected, BET)."""

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
    """Who makes the brain mask: `given` (data.layout.mask), `bet` (FSL), `deepbet`, `none`, or `auto`: the first of
    the three that is there."""
    bet_fraction: float
    """FSL bet's -f (paper: 0.05)."""


@dataclass
class Preprocess:
    work_dir: str
    data: PreparedData
    preprocess: Preprocessing
    out: str
    """Where the new volumes go; preset=preprocessed reads them from its default."""


@dataclass
class BuildShards:
    work_dir: str
    data: PreparedData
    purposes: list[str]
    """Of `gan` and `unet`."""


@dataclass
class Benchmark:
    target: str
    """`loader` or `prepare`."""
    repeats: int
    """Rounds; in each the competitors take turns."""
    shape: list[int]
    """Voxels of the phantom volumes that are measured on."""
    patch_shape: list[int]
    num_patches: int
    """Patches per round (loader), vessel-centred patches per volume and purpose (prepare)."""
    num_subjects: int
    """Volumes of the cohort that is built (prepare)."""
    seed: int
    out: str | None
    """Append the JSON line to this file too."""


@dataclass
class Phantom:
    """A synthetic full-head TOF cohort."""

    num_subjects: int
    shape: list[int]
    spacing_mm: list[float]
    seed: int


@dataclass
class MakePhantom:
    work_dir: str
    data: PreparedData
    phantom: Phantom
