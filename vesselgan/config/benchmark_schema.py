"""Settings of measurements; each target reads its own."""

from dataclasses import dataclass, field
from typing import Any

from vesselgan.config.checks import NOT_NEGATIVE, POSITIVE, THREE_SIZES, Rule, one_of, read_if, rule
from vesselgan.config.training_schema import Runtime, Variant

PARTS = ("correctness", "speed", "science")
TARGETS = ("acceptance", "loader", "prepare", "step", "segment", "metrics", "machine", "scaling", "private", "utility")


def _for_targets(*targets: str) -> Rule:
    return read_if(lambda c: c.target in targets, "target=" + " or ".join(targets))


def _are_distinct(values: list[Any]) -> bool:
    return 0 < len(values) == len(set(values))


OF_PHANTOMS = _for_targets("loader", "prepare", "segment", "metrics", "machine", "scaling")
OF_PATCHES = _for_targets(*(target for target in TARGETS if target not in ("metrics", "utility")))
OF_STEPS = _for_targets("acceptance", "step", "machine", "scaling", "private")
ON_DEVICES = _for_targets("acceptance", "step", "segment", "machine", "scaling", "private")
WITH_THREADS = _for_targets("step", "segment", "machine", "scaling", "private")
OF_READING = _for_targets("loader", "prepare", "machine", "scaling")
OF_ACCEPTANCE = _for_targets("acceptance")
OF_UTILITY = _for_targets("utility")


@dataclass
class Benchmark:
    target: str = field(metadata=one_of(*TARGETS))
    """`acceptance`: whether the package works here, and how fast; `loader`: a pair ready for the GAN; `prepare`: shards
    on two ranks; `step`: a training step; `segment`: a whole volume; `metrics`: the scores; `machine`: rates for plan's
    step times; `scaling`: these times against training on one rank and several; `private`: a private critic step;
    `utility`: what samples teach at equal compute."""
    repeats: int = field(metadata=POSITIVE)
    """Rounds; in each every candidate runs once."""
    shape: list[int] = field(metadata=THREE_SIZES | OF_PHANTOMS)
    """Voxels of the phantom volumes that are measured on."""
    patch_shape: list[int] = field(metadata=THREE_SIZES | OF_PATCHES)
    variant: Variant = field(metadata=OF_STEPS)
    """Whose step, width and precision."""
    batch_size: int = field(metadata=POSITIVE | ON_DEVICES)
    """Samples of a step; windows of a volume at a time."""
    threads: int = field(metadata=POSITIVE | WITH_THREADS)
    """CPU threads."""
    runtime: Runtime = field(metadata=ON_DEVICES)
    num_patches: int = field(metadata=POSITIVE | OF_READING)
    """Patches per round; `prepare`: vessel-centred patches per volume and purpose."""
    num_subjects: int = field(metadata=POSITIVE | _for_targets("prepare"))
    """Volumes of the cohort that is built."""
    ranks_per_node: int | None = field(metadata=POSITIVE | _for_targets("machine", "scaling"))
    """Ranks that are probed at once; null: one per GPU, else one per core."""
    folder: str | None = field(metadata=_for_targets("machine", "scaling"))
    """Where the shards would lie, whose file system is read; null: where temporary files lie."""
    machine_file: str | None = field(metadata=_for_targets("machine"))
    """Write the rates there: configs/machine/NAME.yaml is plan's machine=NAME."""
    seed: int = field(metadata=NOT_NEGATIVE)
    parts: list[str] = field(
        metadata=rule(lambda v: bool(v) and set(v) <= set(PARTS), "must name some of " + ", ".join(PARTS))
        | OF_ACCEPTANCE
    )
    """`correctness`, `speed`, `science`."""
    minutes: float = field(metadata=POSITIVE | OF_ACCEPTANCE)
    """Time limit, what does not fit is reported as not run; `science`: for how long each generator trains."""
    cohort_dir: str | None = field(metadata=_for_targets("acceptance", "utility"))
    """Directory of a cohort with shards (science); null: a phantom cohort is made."""
    out: str | None
    """Append the JSON line to this file too; acceptance, utility: their directory, null: work/TARGET."""
    recipes: list[str] = field(
        metadata=rule(_are_distinct, "must be one or more texts of settings, each once") | OF_UTILITY
    )
    """Settings of train_gan, key=value, a text each; steps, seed and cohort are the benchmark's."""
    seconds: list[float] = field(
        metadata=rule(lambda v: _are_distinct(v) and min(v) > 0, "must be one or more numbers above 0, each once")
        | OF_UTILITY
    )
    """Seconds of training that every recipe is given, in steps as long as short probes of it say: on a GPU, or on one
    thread of an idle CPU. What they took is measured."""
    num_seeds: int = field(metadata=POSITIVE | OF_UTILITY)
    """Seeds from `seed` on, of generator and U-Net; shuffled labels have the first."""
    num_samples: int = field(metadata=POSITIVE | OF_UTILITY)
    """Synthetic patches that a U-Net learns from."""
