"""The commands: one dataclass each, of every setting that it has. Values stand in configs/*.yaml alone."""

from dataclasses import dataclass, field

from vesselgan.config.benchmark_schema import Benchmark
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
    Rule,
    one_of,
    read_if,
    rule,
)
from vesselgan.config.data_schema import (
    Data,
    DemoData,
    EvaluationData,
    GanData,
    Layout,
    LearningData,
    Phantom,
    Prepare,
    PreparedData,
    Preprocessing,
    ReportData,
    SourceData,
    Split,
    TrainingData,
)
from vesselgan.config.evaluation_schema import AuditFeatures, ImageScores, LabelSweep, LabelThresholds, StudyImages
from vesselgan.config.generate_schema import Generate
from vesselgan.config.release_schema import Release
from vesselgan.config.training_schema import Dp, Flow, Machine, Runtime, Train, TrainingRuntime, Unet, UnetRun, Variant

__all__ = ["Benchmark", "Data", "Dp", "Flow", "GanData", "Generate", "ImageScores", "LabelSweep", "Layout"]
__all__ += ["LearningData", "Machine", "Phantom", "Prepare", "PreparedData", "Preprocessing", "Release", "Runtime"]
__all__ += ["Split"]
__all__ += ["StudyImages", "Train", "TrainingData", "TrainingRuntime", "Unet", "UnetRun", "Variant"]


@dataclass
class TrainGan:
    work_dir: str
    run_dir: str | None
    """The run's folder; null: work_dir/runs/<variant>-<hash of the configuration>."""
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
class TrainUnet:
    work_dir: str
    run_dir: str | None
    """The run's folder; null: work_dir/runs/unet-<source>-<hash of the configuration>."""
    checkpoint: str | None
    allow_config_change: list[str]
    """Settings, or groups of them, that may change when a run resumes."""
    data: LearningData
    unet: UnetRun
    synthetic: str | None = field(metadata=read_if(lambda c: c.data.source != "real", "data.source=synthetic or both"))
    """Folder of synthetic shards: patches of `vesselgan generate`, or cut from its heads by `build_shards`."""
    runtime: TrainingRuntime


OF_COHORT = read_if(lambda c: c.input is None, "input=null")


@dataclass
class Segment:
    run: str
    """Run directory of a U-Net."""
    checkpoint: str | None
    input: str | None
    """A NIfTI file or a folder of them; null: the cohort's `split`."""
    follow_links: bool = field(metadata=read_if(lambda c: c.input is not None, "input"))
    """Read images that a link places outside the folder `input`; false: such a link is an error."""
    allow_mismatch: bool
    """Segment images that were not preprocessed as those that the U-Net learned from; false: that is an error."""
    data: Data = field(metadata=OF_COHORT)
    split: str = field(metadata=SPLITS | OF_COHORT)
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
    work_dir: str = field(metadata=OF_COHORT)
    runtime: Runtime


JOBS_OF_COHORTS = ("segmentation", "threshold", "image", "label_threshold")


def _for_jobs(*jobs: str) -> Rule:
    return read_if(lambda c: c.evaluate in jobs, "evaluate=" + " or ".join(jobs))


@dataclass
class Evaluate:
    evaluate: str = field(metadata=one_of(*JOBS_OF_COHORTS, "comparison"))
    """`segmentation`: predictions against labels; `threshold`: the best global threshold, fitted on validation;
    `image`: synthetic patches against held-out real ones; `label_threshold`: candidates of synthetic labels'
    threshold; `comparison`: a study's results together."""
    name: str
    """What the result is called in tables."""
    predictions: str | None = field(metadata=_for_jobs("segmentation"))
    """Folder of predicted labels, SUBJECT.nii.gz, as `segment` writes it (segmentation)."""
    error_maps: str | None = field(metadata=_for_jobs("segmentation"))
    """Folder for error maps of each prediction, with pictures; null: none."""
    fit_cohort: str | None = field(metadata=_for_jobs("threshold"))
    """cohort_dir whose validation subjects the global threshold is fitted on; null: the scored cohort's own."""
    sources: str | None = field(metadata=_for_jobs("comparison"))
    """A study's sources.json."""
    labels: LabelSweep = field(metadata=_for_jobs("label_threshold"))
    data: EvaluationData = field(metadata=_for_jobs(*JOBS_OF_COHORTS))
    split: str = field(metadata=SPLITS | _for_jobs("segmentation", "threshold"))
    """Subjects that are scored."""
    image: ImageScores = field(metadata=_for_jobs("image"))
    work_dir: str = field(metadata=_for_jobs(*JOBS_OF_COHORTS))
    out: str
    """The result, a JSON file."""
    runtime: Runtime = field(metadata=_for_jobs("image"))


OF_RUN = read_if(lambda c: c.run is not None, "run")


@dataclass
class Audit:
    run: str | None
    """Run directory of the generator, whose critic, or a flow itself, is attacked too; null: the patches alone."""
    synthetic: list[str]
    """Folders of synthetic shards, or of whole heads, that are to leave together; empty: run/synthetic, or
    run/synthetic_volumes where the run has volumes alone."""
    second_visits: str | None
    """cohort_dir of later visits of training patients, which no generator saw; null: linkage is not tried."""
    image: AuditFeatures
    name: str | None
    """What the result is called; null: the runs that the patches are of."""
    checkpoint: str | None = field(metadata=OF_RUN)
    """Of `run`, whose network (critic or flow) is attacked as well; null: the one that the samples are of, else the
    newest complete one."""
    data: Data
    reference: str = field(metadata=one_of("validation", "test"))
    """Split of other people's real patches, `validation` or `test`, that training never saw."""
    seed: int = field(metadata=NOT_NEGATIVE)
    record_only: bool
    """Write the result and exit 0 whatever the verdict; false: `fail` and `cannot conclude` end with exit 7."""
    override_privacy_gate: str | None = field(metadata=rule(lambda v: bool(v.strip()), "must be a reason in words"))
    """Why these patches may be shared although the audit did not pass; stands in the result, and exit is 0."""
    work_dir: str
    out: str
    """The result, a JSON file."""
    runtime: Runtime = field(
        metadata=read_if(lambda c: c.run is not None or c.image.extractor is not None, "run or image.extractor")
    )


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
    data: ReportData
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
    num_patients: int = field(
        metadata=POSITIVE | read_if(lambda c: c.variant.dp is not None or c.variants, "a private variant")
    )
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
    data: DemoData
    num_patches: int = field(metadata=POSITIVE)
    """Synthetic patches of each generator, that the U-Nets learn from."""
    num_heads: int | None = field(metadata=POSITIVE)
    """Whole synthetic heads that the flow's U-Nets learn from in place of its patches, as `preset=hours` has it; null:
    none."""


OF_GRID = read_if(lambda c: c.sweep.learning_rates or c.sweep.batch_sizes, "sweep.learning_rates or sweep.batch_sizes")
OF_SWEEP = read_if(lambda c: c.study == "sweep", "study=sweep")
OF_SOURCES = read_if(lambda c: c.study == "data_sources", "study=data_sources")


@dataclass
class Sweep:
    """The GANs and flows that study=sweep ranks; lists that are not empty are combined with each other."""

    checkpoints: list[str]
    """Of every run that is named; empty: the newest."""
    variant: str = field(metadata=OF_GRID)
    """Of GANs or flows to train; a name in configs/variant."""
    overrides: list[str] = field(metadata=OF_GRID)
    """Further settings of those to train, as for train_gan, below `variant` and `train` or a preset:
    ["train.max_steps=50", "preset=demo"]."""
    learning_rates: list[float] = field(metadata=ALL_POSITIVE)
    """Adam's of the critic, for GANs to train; the generator's keeps its ratio to it. For flows to train, which have no
    critic, variant.learning_rate_generator; Muon's keeps its ratio to it."""
    batch_sizes: list[int] = field(metadata=ALL_POSITIVE)
    """For GANs or flows to train."""


@dataclass
class Study:
    study: str = field(metadata=one_of("data_sources", "sweep"))
    """`data_sources`: U-Nets on real, each GAN's patches and both, on every test cohort; `sweep`: GANs ranked by the
    U-Nets that they train, on the real validation patches."""
    name: str
    """The study's folder below work_dir/studies."""
    work_dir: str
    runs: list[str]
    """Run directories of trained GANs."""
    test_cohorts: list[str] = field(metadata=OF_SOURCES)
    """cohort_dir of further cohorts to test on, beside the training cohort's own test subjects."""
    seeds: list[int] = field(metadata=rule(lambda v: all(n >= 0 for n in v), "must be seeds of 0 or more"))
    """A U-Net of every source, in a sweep of every GAN, for each."""
    num_patches: int = field(metadata=POSITIVE)
    """Synthetic patches of every GAN."""
    weights: str | None = field(metadata=WEIGHTS)
    """Which of the generator's weights make them, as in `generate`."""
    labels: LabelThresholds
    image: StudyImages = field(metadata=OF_SOURCES)
    sweep: Sweep = field(metadata=OF_SWEEP)
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
    """Whose training the shards are for: `gan`, `unet` or both; each is cut in its own way."""


@dataclass
class MakePhantom:
    work_dir: str
    data: SourceData
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
