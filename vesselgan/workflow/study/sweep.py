"""Which GAN or flow to take: checkpoints, learning rates and batch sizes ranked by the U-Nets that their patches train.

As the paper chose its hyper-parameters: by segmentation on the real validation set. No test subject is read.
"""

import itertools
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from vesselgan.config.compose import compose
from vesselgan.config.schema import Study, TrainGan, Variant
from vesselgan.core.console import log
from vesselgan.core.errors import UsageError
from vesselgan.formats.results import write_result
from vesselgan.workflow.stage import Stage
from vesselgan.workflow.study import steps


def run_sweep(config: Study, home: Path) -> Path:
    """Train the grid's GANs, rank them and those of `runs`; returns the file with the ranking, best first."""
    grid = grid_of(config, home)
    if not config.runs and not grid:
        raise UsageError("study=sweep needs runs=[DIR], sweep.learning_rates=[4e-4,2e-4] or sweep.batch_sizes=[4,8]")
    gans = steps.gans_of(config, config.sweep.checkpoints)
    runner = steps.StageRunner(home)
    for gan, stage in grid:
        runner.run(stage)
        gans.append(gan)
    records = [record_of(config, home, gan, runner) for gan in gans]
    ranked = sorted(records, key=lambda record: -record["validation_dice"])
    out = home / "ranking.json"
    result: dict[str, Any] = {"ranked_by": "validation_dice, mean over seeds", "seeds": config.seeds}
    result |= {"unet_steps": config.unet.max_steps, "ranking": ranked}
    write_result(out, result)
    log.info(f"\nDice on the real validation patches, mean over seeds {config.seeds} (and of each):")
    for place, record in enumerate(ranked, 1):
        dice_by_seed = ", ".join(f"{dice:.4f}" for dice in record["validation_dice_by_seed"].values())
        log.info(f"{place:3}  {record['validation_dice']:.4f} ({dice_by_seed})  {record['gan']}, "
              f"label threshold {record['label_threshold']:g}, {record['run']}")  # fmt: skip
    return out


def record_of(config: Study, home: Path, gan: steps.Gan, runner: steps.StageRunner) -> dict[str, Any]:
    """A GAN's entry in the ranking: its label threshold, chosen with the first seed, then a U-Net of every seed."""
    choice = steps.choose_threshold(config, home, gan, runner)
    source = steps.synthetic_source(gan, choice["label_threshold"])
    dice = {}
    for seed in config.seeds:
        runner.run(steps.unet_stage(config, home, source, seed))
        dice[str(seed)] = steps.unet_facts(home, source, seed)["validation_dice"]
    score = {"validation_dice": statistics.fmean(dice.values()), "validation_dice_by_seed": dice}
    return choice | score | {"variant": gan.variant, "run": str(gan.run), "checkpoint": gan.checkpoint}


def grid_of(config: Study, home: Path) -> list[tuple[steps.Gan, Stage]]:
    """A GAN, or a flow, at every learning rate (as `at_rate` has it) with every batch size.

    Raises UsageError for a value named twice, and for overrides that train_gan refuses.
    """
    sweep = config.sweep
    if not sweep.learning_rates and not sweep.batch_sizes:
        return []
    for key in ("learning_rates", "batch_sizes"):
        values = getattr(sweep, key)
        if len(set(values)) < len(values):
            raise UsageError(f"sweep.{key}={values}: name none twice")
    base = swept_gan(config)
    grid = []
    rates = sweep.learning_rates or [swept_rate(base.variant)]
    batches = sweep.batch_sizes or [base.train.batch_size]
    for rate, batch_size in itertools.product(rates, batches):
        name = f"{base.variant.name}-rate-{rate:g}-batch-{batch_size}"
        run_dir = home / "trained" / name
        gan = replace(base, variant=at_rate(base.variant, rate), train=replace(base.train, batch_size=batch_size))
        # The choice of the variant brings its groups, as `flow`: settings below a group that is null are refused.
        own = {"variant": sweep.variant, "data.label_threshold": gan.data.label_threshold}
        shared = steps.settings_for("train_gan", config, "data", "runtime", reader=gan)
        shared += steps.settings_for("train_gan", gan, "variant", "train")
        inputs = steps.manifests(config, ("gan", "train"))
        stage = steps.training_stage("gan", "GAN", run_dir, own, shared, inputs)
        grid.append((steps.Gan(name, run_dir, base.variant.name, None), stage))
    return grid


def swept_rate(variant: Variant) -> float:
    """The learning rate that a sweep sets: the critic's; of a flow, which has no critic, its network's."""
    return variant.learning_rate_critic if variant.flow is None else variant.learning_rate_generator


def at_rate(variant: Variant, rate: float) -> Variant:
    """`variant` with `rate` as its swept rate; the generator's keeps its ratio to the critic's, Muon's to a flow's."""
    factor = rate / swept_rate(variant)
    if variant.flow is None:
        generator = factor * variant.learning_rate_generator
        return replace(variant, learning_rate_critic=rate, learning_rate_generator=generator)
    muon = None if variant.muon_learning_rate is None else factor * variant.muon_learning_rate
    return replace(variant, learning_rate_generator=rate, muon_learning_rate=muon)


def swept_gan(config: Study) -> TrainGan:
    """The settings of GANs to train. Raises UsageError for an override of something other than variant and train."""
    for setting in config.sweep.overrides:
        if not setting.startswith(("variant.", "train=", "train.", "preset=")):
            raise UsageError(f"sweep.overrides: `{setting}` is not below variant or train; give it to the study itself")
    return compose("train_gan", [f"variant={config.sweep.variant}", *config.sweep.overrides])
