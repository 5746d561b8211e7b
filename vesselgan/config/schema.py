"""The commands: one dataclass each, of every setting that it has. Values stand in configs/*.yaml alone."""

from dataclasses import dataclass, field

from vesselgan.config.checks import (
    ALL_POSITIVE,
    DEVICE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_BELOW_1,
    SPLITS,
    THREE_SIZES,
    WEIGHTS,
    one_of,
    rule,
)
from vesselgan.config.data_schema import (
    Data,
    GanData,
    Layout,
    LearningData,
    Phantom,
    Prepare,
    PreparedData,
    Preprocessing,
    Split,
    TrainingData,
)
from vesselgan.config.evaluation_schema import ImageScores, LabelSweep, LabelThresholds, Memorisation, StudyImages
from vesselgan.config.training_schema import Dp, Flow, Machine, Runtime, Train, TrainingRuntime, Unet, UnetRun, Variant

__all__ = ["Data", "Dp", "Flow", "GanData", "ImageScores", "LabelSweep", "Layout", "LearningData", "Machine"]
__all__ += ["Memorisation", "Phantom", "Prepare", "PreparedData", "Preprocessing", "Runtime", "Split", "StudyImages"]
__all__ += ["Train", "TrainingData", "TrainingRuntime", "Unet", "UnetRun", "Variant"]


@dataclass
class TrainGan:
    work_dir: str
    run_dir: str | None
    """Null: work_dir/runs/<variant>-<hash of the configuration>."""
    checkpoint: str | None
    """Name of the checkpoint to resume from; null: the newest complete one."""
    allow_config_change: list[str]
    """Settings, or groups of them, that may change when a run resumes."""
    init_from: str | None
    """A run directory, or one checkpoint's, whose weights a new run starts with; everything else starts anew."""
    variant: Variant
    data: GanData
    train: Train
    runtime: TrainingRuntime


@dataclass
class Generate:
    run: str
    """Run directory of a GAN."""
    checkpoint: str | None
    num_patches: int = field(metadata=POSITIVE)
    """How many pairs (paper: 11,750 for a U-Net)."""
    seed: int = field(metadata=NOT_NEGATIVE)
    weights: str | None = field(metadata=WEIGHTS)
    """`standing`: the last weights with standing statistics of BatchNorm, re-estimated; `running`: with the statistics
    of training; `ema`: the weights' moving average with standing statistics (variant.ema_decay); null: `ema` where the
    variant keeps one, else `standing`."""
    label_threshold: float | None = field(metadata=SHARE)
    """Label threshold that the manifest recommends to readers and that the NIfTI labels use; null: the variant's."""
    batch_size: int = field(metadata=POSITIVE)
    nifti: bool
    """Write every pair as NIfTI too, into OUT/nifti."""
    out: str | None
    """Null: run/synthetic."""
    runtime: Runtime


@dataclass
class TrainUnet:
    work_dir: str
    run_dir: str | None
    """Null: work_dir/runs/unet-<source>-<hash of the configuration>."""
    checkpoint: str | None
    allow_config_change: list[str]
    """Settings, or groups of them, that may change when a run resumes."""
    data: LearningData
    unet: UnetRun
    synthetic: str | None
    """Folder of synthetic shards, for source synthetic and both."""
    runtime: TrainingRuntime


@dataclass
class Segment:
    run: str
    """Run directory of a U-Net."""
    checkpoint: str | None
    input: str | None
    """A NIfTI file or a folder of them; null: the cohort's `split`."""
    data: Data
    split: str = field(metadata=SPLITS)
    """Subjects that are segmented where no `input` is named."""
    out: str
    """Folder of the predicted labels; the same command resumes there."""
    threshold: float = field(metadata=SHARE)
    """Voxels of at least this probability are vessel."""
    overlap: float = field(metadata=SHARE_BELOW_1)
    """Share of a window that its neighbour covers too."""
    batch_size: int = field(metadata=POSITIVE)
    min_component_voxels: int | None = field(metadata=POSITIVE)
    """Remove connected parts of fewer voxels; null: none, as in the paper."""
    probability: bool
    """Write the probability maps too, into OUT/probability."""
    work_dir: str
    runtime: Runtime


@dataclass
class Evaluate:
    evaluate: str = field(
        metadata=one_of("segmentation", "threshold", "image", "label_threshold", "comparison", "memorisation")
    )
    """`segmentation`: predictions against labels; `threshold`: the best global threshold, fitted on validation;
    `image`: synthetic patches against held-out real ones; `label_threshold`: candidates of synthetic labels'
    threshold; `comparison`: a study's results together; `memorisation`: whether synthetic patches are copies of
    training patches."""
    name: str
    """What the result is called in tables."""
    predictions: str | None
    """Folder of predicted labels, SUBJECT.nii.gz, as `segment` writes it (segmentation)."""
    error_maps: str | None
    """Folder for error maps of each prediction, with pictures; null: none."""
    fit_cohort: str | None
    """cohort_dir whose validation subjects the global threshold is fitted on; null: the scored cohort's own."""
    sources: str | None
    """A study's sources.json (comparison)."""
    labels: LabelSweep
    data: Data
    split: str = field(metadata=SPLITS)
    """Subjects that are scored."""
    image: ImageScores
    memorisation: Memorisation
    work_dir: str
    out: str
    """The result, a JSON file."""
    runtime: Runtime


@dataclass
class Report:
    results: str
    """Folder of the results, one JSON file each."""
    runs: list[str]
    """Run directories of GANs whose losses and samples are shown."""
    synthetic: list[str]
    """Of each of the runs the folder of its synthetic shards, in their order; empty: RUN/synthetic."""
    cohorts: list[str]
    """cohort_dir of further cohorts, beside the one of `data`."""
    error_maps: str | None
    """Folder of error maps, <source>/<cohort>/<subject>.png; null: none."""
    data: Data
    out: str
    """Folder of the page, its tables and figures."""
    work_dir: str


@dataclass
class Plan:
    variant: Variant
    variants: list[str]
    """Names of several, each planned with the other settings; empty: `variant` alone."""
    patch_shape: list[int] = field(metadata=THREE_SIZES)
    ranks: list[int] = field(
        metadata=rule(lambda v: len(v) > 0 and all(n > 0 for n in v), "must be a list of counts above 0, such as [1,8]")
    )
    """Numbers of ranks to plan for."""
    train: Train
    num_pairs: int = field(metadata=POSITIVE)
    """Training patches (paper: 2,350); with train.epochs they give the steps."""
    num_patients: int = field(metadata=POSITIVE)
    """Training patients (paper: 47), for what a private variant spends."""
    device: str = field(metadata=DEVICE)
    """`cuda` or `cpu`: where it would run; neither is needed to plan."""
    zero_stage: int | None = field(metadata=rule(lambda v: v in (0, 1, 2), "must be 0, 1 or 2"))
    """ZeRO's stage; null: as in configs/deepspeed/ds_<precision>.json."""
    step_seconds: float | None = field(metadata=POSITIVE)
    """A measured step, for the hours of the whole run; null: no hours."""
    memory_gib: float | None = field(metadata=POSITIVE)
    """Memory of one rank's device, to suggest a train.batch_per_gpu that fits; null: no suggestion."""
    machine: Machine
    """Whose rates give the step's time on each number of ranks; a row of configs/machine."""


@dataclass
class Demo:
    work_dir: str
    data: Data
    num_patches: int = field(metadata=POSITIVE)
    """Synthetic patches of each generator, that the U-Nets learn from."""


@dataclass
class Sweep:
    """The GANs that study=sweep ranks; lists that are not empty are combined with each other."""

    checkpoints: list[str]
    """Of every run that is named; empty: the newest."""
    variant: str
    """Of GANs to train; a name in configs/variant."""
    overrides: list[str]
    """Further settings of GANs to train, as for train_gan, below `variant` and `train` or a preset:
    ["train.epochs=50", "preset=demo"]."""
    learning_rates: list[float] = field(metadata=ALL_POSITIVE)
    """The critic's, for GANs to train; the generator's keeps its ratio to it."""
    batch_sizes: list[int] = field(metadata=ALL_POSITIVE)
    """For GANs to train."""


@dataclass
class Study:
    study: str = field(metadata=one_of("data_sources", "sweep"))
    """`data_sources`: U-Nets on real, each GAN's patches and both, on every test cohort; `sweep`: GANs ranked by the
    U-Nets that they train, on the real validation patches."""
    name: str
    """The folder below work_dir/studies."""
    work_dir: str
    runs: list[str]
    """Run directories of trained GANs."""
    test_cohorts: list[str]
    """cohort_dir of further cohorts to test on, beside the training cohort's own test subjects."""
    seeds: list[int] = field(metadata=rule(lambda v: all(n >= 0 for n in v), "must be seeds of 0 or more"))
    """A U-Net of every source, in a sweep of every GAN, for each."""
    num_patches: int = field(metadata=POSITIVE)
    """Synthetic patches of every GAN."""
    weights: str | None = field(metadata=WEIGHTS)
    """Which of the generator's weights make them, as in `generate`."""
    labels: LabelThresholds
    image: StudyImages
    sweep: Sweep
    data: TrainingData
    unet: Unet
    """Every U-Net takes all of unet.max_steps, without early stopping."""
    runtime: Runtime


@dataclass
class Check:
    work_dir: str
    data: PreparedData
    qc: bool
    """Write the page for visual inspection, <cohort_dir>/qc.html."""


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
    purposes: list[str] = field(
        metadata=rule(lambda v: bool(v) and set(v) <= {"gan", "unet"}, "must name gan, unet or both")
    )
    """Of `gan` and `unet`."""


PARTS = ("correctness", "speed", "science")
TARGETS = ("acceptance", "loader", "prepare", "step", "segment", "metrics", "machine", "scaling", "private", "utility")


@dataclass
class Benchmark:
    target: str = field(metadata=one_of(*TARGETS))
    """`acceptance`: whether the package works here, and how fast; `loader`: a pair ready for the GAN; `prepare`: shards
    on two ranks; `step`: a training step; `segment`: a whole volume; `metrics`: the scores; `machine`: rates for plan's
    step times; `scaling`: these times against training on one rank and several; `private`: a private critic step;
    `utility`: what samples teach at equal compute."""
    repeats: int = field(metadata=POSITIVE)
    """Rounds; in each every candidate runs once."""
    shape: list[int] = field(metadata=THREE_SIZES)
    """Voxels of the phantom volumes that are measured on (loader, prepare)."""
    patch_shape: list[int] = field(metadata=THREE_SIZES)
    variant: Variant
    """Whose step, width and precision (step)."""
    batch_size: int = field(metadata=POSITIVE)
    """Samples of a step (step)."""
    threads: int = field(metadata=POSITIVE)
    """CPU threads (step)."""
    runtime: Runtime
    """Where the step runs (step)."""
    num_patches: int = field(metadata=POSITIVE)
    """Patches per round (loader), vessel-centred patches per volume and purpose (prepare)."""
    num_subjects: int = field(metadata=POSITIVE)
    """Volumes of the cohort that is built (prepare)."""
    ranks_per_node: int | None = field(metadata=POSITIVE)
    """Ranks that are probed at once (machine, scaling); null: one per GPU, else one per core."""
    folder: str | None
    """Where the shards would lie, whose file system is read (machine); null: where temporary files lie."""
    machine_file: str | None
    """Write the rates there (machine): configs/machine/NAME.yaml is plan's machine=NAME."""
    seed: int = field(metadata=NOT_NEGATIVE)
    parts: list[str] = field(
        metadata=rule(lambda v: bool(v) and set(v) <= set(PARTS), "must name some of " + ", ".join(PARTS))
    )
    """`correctness`, `speed`, `science` (acceptance)."""
    minutes: float = field(metadata=POSITIVE)
    """Time limit, what does not fit is reported as not run; `science`: for how long the GAN trains (acceptance)."""
    cohort_dir: str | None
    """Directory of a cohort with shards (acceptance, science); null: a phantom cohort is made."""
    out: str | None
    """Append the JSON line to this file too; acceptance, utility: their directory, null: work/<target>."""
    recipes: list[str]
    """Settings of train_gan, a text each (utility)."""
    seconds: list[float] = field(metadata=ALL_POSITIVE)
    """Device seconds that every recipe trains for: CPU time, on a GPU wall time (utility)."""
    num_seeds: int = field(metadata=POSITIVE)
    """Seeds from `seed` on, of GAN and U-Net (utility)."""
    num_samples: int = field(metadata=POSITIVE)
    """Synthetic patches that a U-Net learns from (utility)."""


@dataclass
class MakePhantom:
    work_dir: str
    data: PreparedData
    phantom: Phantom


@dataclass
class Status:
    run: str
    """Run directory of a GAN or a U-Net."""
    stalled_minutes: float = field(metadata=POSITIVE)
    """Minutes without output after which a held run is stalled; at least ten of its logging intervals."""


@dataclass
class Doctor:
    work_dir: str
    """Where data and runs will lie; its file system is tested."""
    min_free_gib: float = field(metadata=NOT_NEGATIVE)
    """Free space below which it is too full (the paper's shards and one run take 8 and 6)."""
    runtime: Runtime
    """With runtime.device=cuda a missing GPU is an error."""
