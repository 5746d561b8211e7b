"""What every study is made of: a GAN's patches, the choice of a label threshold for them, U-Nets and their volumes.

Every step is a stage (workflow.stage): commands with all their settings spelled out, so that they can be repeated by
hand, and the files that are there when it is done.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.compose import COMMANDS, flat, from_yaml, keys_of
from vesselgan.config.schema import Study
from vesselgan.core.atomic_io import write_text
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.shards import content_hash
from vesselgan.workflow.stage import Stage, script, walk

GENERATION_SEED = 990


@dataclass(frozen=True)
class Gan:
    """A GAN under study, at one checkpoint."""

    name: str
    run: Path
    variant: str
    checkpoint: str | None
    """Null: the newest."""


@dataclass(frozen=True)
class Source:
    """What a U-Net is trained on."""

    name: str
    """The row of the table: `real`, a GAN's name, `real+` a GAN's name, or `shuffled`."""
    kind: str
    """`real`, `synthetic`, `both` or `shuffled`."""
    title: str
    gan: Gan | None
    label_threshold: float | None
    """Of the GAN's labels."""


class StageRunner:
    """Walks the stages one by one, each once; it runs when it is not done or when one that it needs ran."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.walked: dict[str, bool] = {}
        """Stage -> whether it ran."""

    def walk(self, stage: Stage, needs: Iterable[str] = ()) -> None:
        if stage.name not in self.walked:
            has_news = any(self.walked[name] for name in needs)
            label = f"[{len(self.walked) + 1:3}]"
            self.walked[stage.name] = walk(self.home, stage, label, after_news=has_news)


def word(key: str, value: Any) -> str:
    """An override as Hydra reads it back, whatever the value is."""
    return f"{key}={json.dumps(value if not isinstance(value, Path) else str(value), separators=(',', ':'))}"


def image_stage(config: Study, home: Path, gan: Gan, label_threshold: float) -> Stage:
    """What FID, PRD and the labels' looks say of one GAN's patches, with the network that the study names."""
    out = home / "results" / f"image-{gan.name}.json"
    words = [word("evaluate", "image"), word("name", gan.name), word("work_dir", config.work_dir), word("out", out)]
    words += [word("image.synthetic", synthetic_dir(home, gan)), word("data.label_threshold", label_threshold)]
    words += [w for w in settings_for("evaluate", config, "data", "runtime") if not w.startswith("data.label_thre")]
    words += [word(key, value) for key, value in flat(config.image, "image.").items() if value is not None]
    return Stage(f"image-{gan.name}", f"image scores of {gan.name}", (script("evaluate", *words),), (out,))


def settings_for(verb: str, config: Any, *groups: str) -> list[str]:
    """Every setting of these groups of a configuration that `verb` has too, as overrides."""
    known = keys_of(COMMANDS[verb])
    values = {key: value for group in groups for key, value in flat(getattr(config, group), f"{group}.").items()}
    return [word(key, value) for key, value in values.items() if key in known]


def gans_of(config: Study, checkpoints: list[str]) -> list[Gan]:
    """The trained GANs that are named, at each checkpoint; called after the variant where that tells them apart.

    DataError for one that did not learn from the study's own training shards: who else was in its data, and would be
    scored as unseen, could not be known.
    """
    found = []
    for run in map(Path, config.runs):
        variant = from_yaml("train_gan", run / "config.yaml").variant.name
        if not (run / "finished.json").is_file():
            raise UsageError(
                f"runs: {run} is not finished; finish it with the command that started it, or leave it out"
            )
        for name in checkpoints:
            if not (run / "checkpoints" / name).is_dir():
                there = ", ".join(sorted(path.name for path in (run / "checkpoints").glob("step_*[0-9]"))) or "none"
                raise UsageError(f"sweep.checkpoints: {run} has no {name}; there are: {there}")
        check_trained_on(run, Path(config.data.cohort_dir) / "shards/gan/train")
        found += [(run, variant, checkpoint) for checkpoint in checkpoints or [None]]
    variants = [variant for _, variant, _ in found]
    gans = []
    for run, variant, checkpoint in found:
        parts = [variant] if variants.count(variant) == 1 else [variant, run.resolve().name]
        gans.append(Gan("-".join([*parts, *([checkpoint] if checkpoint else [])]), run, variant, checkpoint))
    names = [gan.name for gan in gans]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"runs: {', '.join(twice)} would name two GANs; name each run once")
    return gans


def check_trained_on(run: Path, training: Path) -> None:
    """DataError unless the GAN of `run` wrote down that it learned from the shards in `training`."""
    told = read_json(run / "provenance.json") if (run / "provenance.json").is_file() else {}
    learned_from = (told.get("inputs") or {}).get("gan/train")
    if learned_from != content_hash(training):
        known = "does not say what it learned from" if learned_from is None else "learned from other shards"
        raise DataError(
            f"runs: {run} {known} (provenance.json), and this study's are {training}: its training patients could be "
            "among those that are scored; name the cohort of its training with data=, or train it on this one"
        )


def synthetic_dir(home: Path, gan: Gan) -> Path:
    return home / "gans" / gan.name / "synthetic"


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
    command = script(
        "generate", *(word(*item) for item in settings.items()), *settings_for("generate", config, "runtime")
    )
    return Stage(f"generate-{gan.name}", f"patches of {gan.name}", (command,), (out / "manifest.json",))


def narrow_stage(config: Study, home: Path, gan: Gan) -> Stage:
    """Which label thresholds the labels' looks leave."""
    out = home / "gans" / gan.name / "thresholds.json"
    settings = [word("evaluate", "label_threshold"), word("name", gan.name), word("out", out)]
    settings += settings_for("evaluate", config, "data", "labels")
    command = script("evaluate", *settings, word("labels.synthetic", synthetic_dir(home, gan)))
    return Stage(f"narrow-{gan.name}", f"label thresholds of {gan.name}", (command,), (out,))


def unet_dir(home: Path, source: Source, seed: int) -> Path:
    at = f"-at-{source.label_threshold:g}" if source.label_threshold is not None else ""
    return home / "unets" / f"{source.name}{at}-seed-{seed}"


def unet_stage(config: Study, home: Path, source: Source, seed: int) -> Stage:
    """One U-Net; every source gets exactly unet.max_steps optimizer steps, so no early stopping (patience).

    Which of its checkpoints is kept, the real validation patches decide as ever.
    """
    run_dir = unet_dir(home, source, seed)
    unet = config.unet
    own = {
        "data.source": {"shuffled": "synthetic"}.get(source.kind, source.kind),
        "data.shuffle_labels": source.kind == "shuffled",
        "unet.seed": seed,
        "unet.patience": unet.max_steps // unet.validate_every + 2,
    }
    if source.gan is not None:
        own |= {"data.label_threshold": source.label_threshold, "synthetic": synthetic_dir(home, source.gan)}
    shared = [w for w in settings_for("train_unet", config, "data", "unet", "runtime") if w.split("=")[0] not in own]
    command = script("train_unet", "--run_dir", str(run_dir), *shared, *(word(*item) for item in own.items()))
    return Stage(f"unet-{run_dir.name}", f"U-Net {run_dir.name}", (command,), (run_dir / "finished.json",))


def choose_threshold(config: Study, home: Path, gan: Gan, walker: StageRunner) -> dict[str, Any]:
    """Decide between the thresholds that are left, by a U-Net each on the real validation patches; the record of it.

    Written to gans/<gan>/label_threshold.json. Nothing here knows of a test subject.
    """
    folder = home / "gans" / gan.name
    walker.walk(generate_stage(config, home, gan))
    walker.walk(narrow_stage(config, home, gan), [f"generate-{gan.name}"])
    narrowed = read_json(folder / "thresholds.json")["narrowed"]
    candidates = []
    for threshold in narrowed:
        source = synthetic_source(gan, threshold)
        stage = unet_stage(config, home, source, config.seeds[0])
        walker.walk(stage, [f"generate-{gan.name}"])
        facts = read_json(stage.outputs[0])
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
    print(f"      {gan.name}: label threshold {record['label_threshold']:g} of {chosen}", flush=True)
    return record


def synthetic_source(gan: Gan, label_threshold: float) -> Source:
    return Source(gan.name, "synthetic", f"U-Net on {gan.name}", gan, label_threshold)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({error}); remove it and start the study again, it goes on") from error
