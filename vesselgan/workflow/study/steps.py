"""The stages of every study: a GAN's patches, the choice of their label threshold, U-Nets and their volumes.

Commands have all their settings spelled out, so that they can be repeated by hand.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.checks import unread
from vesselgan.config.compose import flat
from vesselgan.config.overrides import COMMANDS, is_known, keys_of
from vesselgan.config.schema import Study
from vesselgan.core.atomic_io import write_text
from vesselgan.core.console import log
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats import checkpoint_folder
from vesselgan.formats.cohort import COHORT, Cohort, shards_dir
from vesselgan.formats.results import read_result
from vesselgan.formats.run_dir import RunDir, check_distinct
from vesselgan.formats.shards import MANIFEST, content_hash
from vesselgan.workflow.stage import Stage, run_stage, vesselgan

GENERATION_SEED = 990
OTHER_ROWS = ("real", "shuffled", "threshold")
"""Names of a study's rows that no GAN may have."""
UNET_FACTS = {"steps", "best_checkpoint", "validation_dice", "validation_loss"}


@dataclass(frozen=True)
class Gan:
    """A GAN under study, at one checkpoint."""

    name: str
    run: Path
    variant: str
    checkpoint: str | None
    """Null: the newest."""


@dataclass(frozen=True)
class TrainingSource:
    """The patches a U-Net is trained on."""

    name: str
    """The row of the table: `real`, a GAN's name, `real+` a GAN's name, or `shuffled`."""
    kind: str
    """`real`, `synthetic`, `both` or `shuffled`."""
    title: str
    gan: Gan | None
    label_threshold: float | None
    """Of the GAN's labels."""


class StageRunner:
    """Runs stages one by one, each once."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.names: set[str] = set()

    def run(self, stage: Stage) -> None:
        if stage.name not in self.names:
            self.names.add(stage.name)
            run_stage(self.home, stage, f"[{len(self.names):3}]")


def override(key: str, value: Any) -> str:
    """An override as Hydra reads it back, whatever the value is."""
    plain = str(value) if isinstance(value, Path) else value
    return f"{key}={json.dumps(plain, separators=(',', ':'), ensure_ascii=False)}"


def command(name: str, settings: dict[str, Any], *more: str) -> tuple[str, ...]:
    """A command with these settings; `more`: further words."""
    return vesselgan(name, *(override(*item) for item in settings.items()), *more)


def image_stage(config: Study, home: Path, gan: Gan, label_threshold: float) -> Stage:
    """FID, PRD and the label statistics of one GAN's patches, on the features of the study's network."""
    out = home / "results" / f"image-{gan.name}.json"
    settings = {"evaluate": "image", "name": gan.name, "work_dir": config.work_dir, "out": out}
    settings |= {"image.synthetic": synthetic_dir(home, gan), "data.label_threshold": label_threshold}
    shared = settings_for("evaluate", config, "data", "runtime")
    shared += [override(key, value) for key, value in flat(config.image, "image.").items() if value is not None]
    words, cohort_dir = command("evaluate", settings, *shared), Path(config.data.cohort_dir)
    read = manifests(config, ("gan", "train"), ("gan", "validation"), ("unet", "validation"))
    inputs = (cohort_dir / COHORT, synthetic_dir(home, gan) / MANIFEST, *read)
    inputs += (Path(config.image.weights),) if config.image.weights is not None else ()
    return Stage(f"image-{gan.name}", f"image scores of {gan.name}", (words,), (out,), inputs=inputs)


def settings_for(command_name: str, config: Any, *groups: str, reader: Any = None) -> list[str]:
    """Every setting in these groups of `config` that `command_name` has too and reads, as overrides.

    A group below them that is null stays null. reader: the command's own configuration, where what it reads does not
    follow from `config`; None: it does.
    """
    known, reader = keys_of(COMMANDS[command_name]), config if reader is None else reader
    values = {key: value for group in groups for key, value in flat(getattr(config, group), f"{group}.").items()}
    return [override(k, value) for k, value in values.items() if is_known(k, known) and unread(reader, k) is None]


def gans_of(config: Study, checkpoints: list[str]) -> list[Gan]:
    """The trained GANs of `runs`, at each checkpoint, named after the variant where that is unique and no other row's.

    Raises DataError for one that did not learn from the study's own training shards: patients of its data might be
    scored as unseen.
    """
    check_distinct(config.runs)
    trained: list[tuple[Path, str, str | None]] = []
    for run in map(Path, config.runs):
        variant = RunDir(run).config("train_gan").variant.name
        if not RunDir(run).finished_file.is_file():
            raise UsageError(f"runs: {run} is not finished; finish it as it was started, or leave it out")
        for name in checkpoints:
            if name not in (present := RunDir(run).checkpoints()):
                listed = ", ".join(sorted(present)) or "none"
                raise UsageError(f"sweep.checkpoints: {run} has no {name}, but {listed}; name one of these")
        check_trained_on(run, shards_dir(config.data.cohort_dir, "gan", "train"))
        chosen: list[str | None] = [*checkpoints] or [None]
        trained += [(run, variant, checkpoint) for checkpoint in chosen]
    names = [*OTHER_ROWS, *(variant for _, variant, _ in trained)]
    gans = []
    for run, variant, checkpoint in trained:
        name = variant if names.count(variant) == 1 else f"{variant}-{run.resolve().name}"
        gans.append(Gan(f"{name}-{checkpoint}" if checkpoint else name, run, variant, checkpoint))
    names = [gan.name for gan in gans]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"runs: {', '.join(twice)} would name two GANs; name each run once")
    return gans


def check_trained_on(run: Path, training: Path) -> None:
    """Raises DataError unless the provenance of `run` records the shards in `training`."""
    learned_from = RunDir(run).learned_from()
    if learned_from != {content_hash(training)}:
        fault = "learned from other shards" if learned_from else "does not record what it learned from"
        raise DataError(
            f"runs: {run} {fault}, not from {training}: its training patients could be among those "
            "that are scored; name the cohort of its training with data=, or train it on this one"
        )


def synthetic_dir(home: Path, gan: Gan) -> Path:
    return home / "gans" / gan.name / "synthetic"


def manifests(config: Study, *sets: tuple[str, str]) -> tuple[Path, ...]:
    """Of the cohort's shards, by purpose and split."""
    return tuple(shards_dir(config.data.cohort_dir, *purpose_and_split) / MANIFEST for purpose_and_split in sets)


def volumes(cohort_dir: str | Path, split: str, *roles: str) -> tuple[Path, ...]:
    """The files of a split's subjects, of these roles."""
    subjects = Cohort.read(cohort_dir).of_split(split).values()
    paths = [getattr(subject, role) for subject in subjects for role in roles]
    return tuple(path for path in paths if path is not None)


def generate_stage(config: Study, home: Path, gan: Gan) -> Stage:
    out = synthetic_dir(home, gan)
    settings = {
        "run": gan.run,
        "checkpoint": gan.checkpoint,
        "num_patches": config.num_patches,
        "seed": GENERATION_SEED,
        "weights": config.weights,
        "out": out,
    }
    words = command("generate", settings, *settings_for("generate", config, "runtime"))
    checkpoint = checkpoint_folder.find_checkpoint(gan.run, gan.checkpoint, files=())
    inputs = () if checkpoint is None else (checkpoint / checkpoint_folder.MANIFEST,)
    return Stage(f"generate-{gan.name}", f"patches of {gan.name}", (words,), (out / MANIFEST,), inputs=inputs)


def narrow_stage(config: Study, home: Path, gan: Gan) -> Stage:
    """The label thresholds that the label statistics do not rule out."""
    out = home / "gans" / gan.name / "thresholds.json"
    settings = {"evaluate": "label_threshold", "name": gan.name, "out": out}
    settings |= {"data.cohort_dir": config.data.cohort_dir, "labels.synthetic": synthetic_dir(home, gan)}
    words = command("evaluate", settings, *settings_for("evaluate", config, "labels"))
    inputs = (synthetic_dir(home, gan) / MANIFEST, *manifests(config, ("gan", "train")))
    return Stage(f"narrow-{gan.name}", f"label thresholds of {gan.name}", (words,), (out,), inputs=inputs)


def unet_dir(home: Path, source: TrainingSource, seed: int) -> Path:
    at = f"-at-{source.label_threshold:g}" if source.label_threshold is not None else ""
    return home / "unets" / f"{source.name}{at}-seed-{seed}"


def unet_stage(config: Study, home: Path, source: TrainingSource, seed: int) -> Stage:
    """One U-Net. Every source gets exactly unet.max_steps optimizer steps: patience is set so that none stops early.

    The real validation patches choose its checkpoint.
    """
    run_dir = unet_dir(home, source, seed)
    unet = config.unet
    own = {
        "data.source": {"shuffled": "synthetic"}.get(source.kind, source.kind),
        "data.shuffle_labels": source.kind == "shuffled",
        "unet.seed": seed,
        "unet.patience": unet.max_steps // unet.validate_every + 2,
    }
    inputs = manifests(config, ("unet", "validation"))
    if source.kind in ("real", "both"):
        inputs += manifests(config, ("unet", "train"))
    if source.gan is not None:
        own |= {"data.label_threshold": source.label_threshold, "synthetic": synthetic_dir(home, source.gan)}
        inputs += (synthetic_dir(home, source.gan) / MANIFEST,)
    shared = settings_for("train_unet", config, "data", "unet", "runtime")
    return training_stage("unet", "U-Net", run_dir, own, shared, inputs)


def training_stage(
    kind: str, title: str, run_dir: Path, own: dict[str, Any], shared: list[str], inputs: tuple[Path, ...]
) -> Stage:
    """The training of a `unet` or a `gan`; `own` settings replace shared ones."""
    kept = [setting for setting in shared if setting.split("=")[0] not in own]
    words = command(f"train_{kind}", own, *kept, "--run_dir", str(run_dir))
    finished = RunDir(run_dir).finished_file
    return Stage(f"{kind}-{run_dir.name}", f"{title} {run_dir.name}", (words,), (finished,), inputs=inputs)


def unet_facts(home: Path, source: TrainingSource, seed: int) -> dict[str, Any]:
    """The facts of a U-Net that `unet_stage` has trained."""
    run = RunDir(unet_dir(home, source, seed))
    facts = run.finished()
    assert facts is not None, "a stage that ran leaves its outputs"
    if missing := UNET_FACTS - facts.keys():
        raise DataError(f"{run.finished_file}: lacks {', '.join(sorted(missing))}; remove {run.path} and start again")
    return facts


def choose_threshold(config: Study, home: Path, gan: Gan, runner: StageRunner) -> dict[str, Any]:
    """Choose between the remaining thresholds by a U-Net each, scored on the real validation patches.

    Returns the record in gans/<gan>/label_threshold.json. No test subject is read.
    """
    folder = home / "gans" / gan.name
    runner.run(generate_stage(config, home, gan))
    runner.run(narrow_stage(config, home, gan))
    narrowed = read_result(folder / "thresholds.json").get("narrowed")
    if not isinstance(narrowed, list) or not all(isinstance(threshold, float) for threshold in narrowed):
        raise DataError(f"{folder / 'thresholds.json'}: names no label thresholds; remove it and start again")
    candidates = []
    for threshold in narrowed:
        source = synthetic_source(gan, threshold)
        runner.run(unet_stage(config, home, source, config.seeds[0]))
        facts = unet_facts(home, source, config.seeds[0])
        kept = {key: facts[key] for key in ("validation_dice", "validation_loss", "best_checkpoint", "steps")}
        candidates.append({"label_threshold": threshold, **kept})
    best = max(candidates, key=lambda entry: (entry["validation_dice"], -entry["label_threshold"]))
    record = {
        "gan": gan.name,
        "label_threshold": best["label_threshold"],
        "validation_dice": best["validation_dice"],
        "decided_on": "real validation patches, a U-Net each on synthetic patches alone",
        "candidates": candidates,
    }
    write_text(folder / "label_threshold.json", json.dumps(record, indent=1) + "\n")
    chosen = ", ".join(f"{entry['label_threshold']:g} (Dice {entry['validation_dice']:.3f})" for entry in candidates)
    log.info(f"      {gan.name}: label threshold {record['label_threshold']:g} of {chosen}")
    return record


def synthetic_source(gan: Gan, label_threshold: float) -> TrainingSource:
    return TrainingSource(gan.name, "synthetic", f"U-Net on {gan.name}", gan, label_threshold)
