"""One training run of a GAN or a flow: check the settings, build the networks, resume or start, train, mark the end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vesselgan.config.compose import Command, config_hash
from vesselgan.config.flow import knows_place
from vesselgan.config.schema import Plan, TrainGan, Variant
from vesselgan.core.errors import DataError, PrivacyError, UsageError
from vesselgan.data.positions import Places, places_of
from vesselgan.formats.cohort import shards_dir
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.variants import GIVEN, TISSUE
from vesselgan.privacy.run import PrivateRun, plan_private_run
from vesselgan.runtime import checkpoint
from vesselgan.runtime.distributed import run_on_rank0
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session, run_in_session
from vesselgan.training import architecture
from vesselgan.training.engines import Engines, batch_plan, build_engines, engine_settings
from vesselgan.training.gan_trainer import build_trainer
from vesselgan.training.run_summary import (
    HPARAMS_METRICS,
    StepEstimate,
    explaining_out_of_memory,
    run_facts,
    summary_lines,
    training_volume_lines,
)
from vesselgan.training.sample_images import log_real_images

PROGRAM = "vesselgan train-gan"


def train_gan(command: Command) -> RunDir:
    """Train, or resume, the GAN or flow that `command` describes; a finished run says so and returns."""
    run_dir, precision = run_dir_of(command.config), command.config.variant.precision
    run_in_session(command, _run, run_dir=run_dir, program=PROGRAM, precision=precision, key="variant.precision")
    return RunDir(run_dir)


def run_dir_of(config: TrainGan) -> Path:
    """The run directory: as given, else named after the variant and the configuration's hash."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path(config.work_dir) / "runs" / f"{config.variant.name}-{config_hash(config)}"


def schedule_of(config: TrainGan | Plan, num_patches: int) -> Schedule:
    """The generator's steps over a training set of `num_patches`."""
    train = config.train
    return Schedule(
        seed=train.seed,
        batch_size=train.batch_size,
        num_patches=num_patches,
        batches_per_step=config.variant.n_critic,
        epochs=train.epochs,
        max_steps=train.max_steps,
    )


def check_places(config: TrainGan) -> None:
    """Raises UsageError if patches are turned whose places a network learns."""
    if config.data.augment and knows_place(config.variant):
        raise UsageError(
            "data.augment=true with a network that knows a patch's place (variant.flow.position=true or "
            "variant.condition): a turned patch is not at its place; set data.augment=false"
        )


def _run(session: Session) -> None:
    config, world, run_dir = session.config, session.world, session.run_dir
    check_places(config)
    shards = run_on_rank0(world, lambda: _training_set(config))
    schedule = schedule_of(config, len(shards))
    num_steps = schedule.stop
    private = run_on_rank0(world, lambda: plan_private_run(config, shards, num_steps))
    if private is not None:
        schedule = replace(schedule, limit=private.generator_steps)
    batch = batch_plan(config, world.size)
    settings = engine_settings(config.variant, batch, session.deepspeed_json)
    estimate = StepEstimate(config, shards.patch_shape, batch, session)
    with explaining_out_of_memory(estimate):
        engines = build_engines(config, shards.patch_shape, settings, world, private)
    inputs = {"gan/train": content_hash(shards.folder)}
    if not session.claim("train_gan", settings, inputs, schedule.stop, max_minutes=config.train.max_minutes):
        return
    (shards,) = session.copy_to_node([shards])
    weights_from = _restore_or_init(session, schedule, engines, private)
    places = _places(config.variant, engines, shards)
    schedule = schedule.resumed_from(session.state)
    trainer = build_trainer(session, schedule, batch, engines, shards, places, private)
    lines = [*summary_lines(estimate, engines, schedule, run_dir), trainer.checkpointer.check_disk()]
    lines += training_volume_lines(engines["generator"].module, shards.spacing_mm)
    session.begin(lines + (private.lines() if private is not None else []), weights_from=weights_from)
    session.log.hparams(config, metrics=HPARAMS_METRICS)
    if not schedule.start:
        log_real_images(session.log, shards, scaling=config.data.scaling, label_threshold=config.data.label_threshold)
    if world.is_main and "critic" in engines and config.variant.condition is None:  # the paper's networks, a chain each
        RunDir(run_dir).write_architecture(architecture.describe(config.variant, shards.patch_shape))
    with explaining_out_of_memory(estimate):
        steps = trainer.train()
    if steps == schedule.stop:
        facts = run_facts(estimate, engines, steps=steps, seconds=session.pace.seconds)
        facts |= private.state() if private is not None else {}
        session.finish(facts, f"{steps} steps in {60 * facts['hours']:.1f} min")
    session.close()


def _training_set(config: TrainGan) -> ShardSet:
    """Raises DataError for synthetic patches, and where patches lack what the variant is given."""
    shards = ShardSet(shards_dir(config.data.cohort_dir, "gan", "train"))
    if shards.origin != "real":
        raise DataError(
            f"{shards.folder}: holds {shards.origin} patches, and a generator learns from patients'; name a cohort of "
            "volumes with data="
        )
    if TISSUE in GIVEN[config.variant.condition]:
        shards.tissue(0)
    return shards


def _places(variant: Variant, engines: Engines, shards: ShardSet) -> Places | None:
    """Of every patch, the middle for a flow without label and place; None for a GAN that makes its labels.

    The network keeps their histogram and mean extent, also where its weights are another run's. Of a private run the
    extent alone, for samples (its steps take each patch's own): where patches were cut is the patients' own, so its
    samples come from everywhere alike.
    """
    generator = engines["generator"].module
    if not isinstance(generator, FlowGenerator):
        return None
    if not knows_place(variant) and variant.condition is None:
        return Places(torch.zeros(len(shards), 3), torch.ones(len(shards), 3))
    places = places_of(shards)
    generator.keep_extent(places.extent_N3.mean(0))
    if variant.dp is None:
        generator.count_positions(places.position_N3)
    return places


def _restore_or_init(
    session: Session, schedule: Schedule, engines: Engines, private: PrivateRun | None
) -> dict[str, Any] | None:
    """Resume from a checkpoint if there is one; returns the origin of a new run's weights, None if that is the seed."""

    def accept(state: dict[str, Any]) -> None:
        schedule.resumed_from(state)
        if private is not None:
            private.load_or_init(session, state, engines[private.network])
        elif "privacy" in state:
            raise PrivacyError(
                f"{session.run_dir}: a private run, and variant.dp=null would train it on without noise, so that its "
                "epsilon would not be true; start a new run directory"
            )

    if session.restore(engines, accept):
        return None
    source = session.config.init_from
    weights_from = None if source is None else checkpoint.init_from(Path(source), engines, world=session.world)
    accept(session.state)
    return weights_from
