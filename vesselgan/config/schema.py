"""Every setting with its type, unit and origin. The values stand in configs/*.yaml, once; here are none.

One dataclass per verb (the classes whose name is a verb), built from the groups above them.
"""

from dataclasses import dataclass

from vesselgan.config.data_schema import (
    Data,
    Layout,
    LearningData,
    Phantom,
    Prepare,
    PreparedData,
    Preprocessing,
    Split,
    TrainingData,
)

__all__ = ["Data", "Layout", "LearningData", "Phantom", "Prepare", "PreparedData", "Preprocessing", "Split"]
__all__ += ["TrainingData"]


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
    weights: str
    """Which of the generator's weights make them, as in `generate`."""


@dataclass
class Check:
    work_dir: str
    data: PreparedData
    qc: bool
    """Write the page for the eyes, <cohort_dir>/qc.html."""


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
class MakePhantom:
    work_dir: str
    data: PreparedData
    phantom: Phantom
