"""The trainer of a GAN or a flow: its parts, and what each of them needs."""

from collections.abc import Iterator
from typing import Any

from vesselgan.config.schema import Variant
from vesselgan.data.patches import ShardDataset, stream
from vesselgan.data.positions import Places, position_stream
from vesselgan.formats.shards import ShardSet
from vesselgan.models.variants import takes_tissue
from vesselgan.privacy.run import PrivateRun
from vesselgan.privacy.step import critic_step as private_critic_step
from vesselgan.privacy.step import flow_step as private_flow_step
from vesselgan.runtime.device_memory import peak_bytes
from vesselgan.runtime.distributed import maximum_over_ranks
from vesselgan.runtime.noise import NoiseSampler
from vesselgan.runtime.nonfinite import SkipLimit
from vesselgan.runtime.timing import Phases
from vesselgan.trainer.batch_plan import BatchPlan
from vesselgan.trainer.checkpointer import Checkpointer, FixedState
from vesselgan.trainer.logger import Logger, Source, loss_scales
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session
from vesselgan.trainer.trainer import Steps, Trainer
from vesselgan.training import flow
from vesselgan.training.average import SamplingWeights, resumed_average
from vesselgan.training.collapse import CollapseMonitor
from vesselgan.training.engines import Engines
from vesselgan.training.gan import CriticStep, critic_step, train
from vesselgan.training.learning_rate import LinearDecay
from vesselgan.training.sample_images import SampleImages

SUMMARY = ("loss/critic", "loss/generator", "loss/wasserstein", "loss/flow", "loss/flow_image", "loss/flow_label")


def build_trainer(
    session: Session,
    schedule: Schedule,
    batch: BatchPlan,
    engines: Engines,
    shards: ShardSet,
    places: Places | None,
    private: PrivateRun | None,
) -> Trainer:
    """places: of the patches, for a flow and a GAN that is given labels. private: of a private variant.

    Restores the moving average of a resumed run.
    """
    world, variant, settings = session.world, session.config.variant, session.config.train
    generator, phases = engines["generator"].module, Phases(world.device)
    noise = NoiseSampler(settings.seed, settings.batch_size, generator.latent_size, batch.slice_of(world.rank))
    decay = [LinearDecay(engines, schedule, variant.final_learning_rate)] if variant.final_learning_rate < 1 else []
    average = resumed_average(generator, variant.ema_decay, session.run_dir, schedule.start)
    private_parts = [] if private is None else [private]
    sources = [*_metric_sources(session, schedule, engines, shards, phases), *(part.metrics for part in private_parts)]
    logger = Logger(session, schedule, every=settings.log_every, summary=SUMMARY, sources=sources)
    sampling_weights = SamplingWeights(generator, average, noise, world.device)
    checkpointer = Checkpointer(
        session,
        schedule,
        engines,
        parts=[patch_geometry(shards), logger, sampling_weights, *private_parts],
        every=settings.checkpoint_every,
        keep_last=settings.keep_last,
        save_every_epochs=settings.save_every_epochs,
        phase=phases,
    )
    batches = _batches(session, schedule, batch, engines, shards, places, private)
    steps = _steps(engines, batches, noise, variant, schedule.steps, phases)
    return Trainer(
        session,
        schedule,
        steps,
        SkipLimit(engines, settings.max_skipped_steps, "train.max_skipped_steps", session.run_dir, world),
        logger,
        checkpointer,
        followers=[*private_parts, *decay, *([] if average is None else [average])],
        observers=[SampleImages(session, schedule, generator, shards, phases)],
    )


def _steps(
    engines: Engines, batches: Iterator[Any], noise: NoiseSampler, variant: Variant, steps: range, phase: Phases
) -> Steps:
    if variant.flow is not None:
        generator = engines["generator"]
        if variant.dp is not None:
            return flow.train(
                batches, steps, phase, lambda batch, step: private_flow_step(generator, batch, step, phase)
            )
        return flow.train(
            batches, steps, phase, lambda batch, step: flow.flow_step(generator, batch, noise, step, phase)
        )
    update_critic: CriticStep = critic_step if variant.dp is None else private_critic_step
    return train(engines["critic"], engines["generator"], batches, noise, variant, steps, phase, update_critic)


def _metric_sources(
    session: Session, schedule: Schedule, engines: Engines, shards: ShardSet, phases: Phases
) -> list[Source]:
    world = session.world
    return [
        lambda interval: phases.read(interval.num_steps),
        loss_scales(engines),
        lambda _: {"memory/peak_gib": maximum_over_ranks(peak_bytes(world.device) / 2**30, world)},
        CollapseMonitor(session, schedule, engines["generator"].module, shards).metrics,
    ]


def _batches(
    session: Session,
    schedule: Schedule,
    batch: BatchPlan,
    engines: Engines,
    shards: ShardSet,
    places: Places | None,
    private: PrivateRun | None,
) -> Iterator[Any]:
    config, world = session.config, session.world
    dataset = ShardDataset(
        shards,
        scaling=config.data.scaling,
        label_threshold=config.data.label_threshold,
        intensity="signed",
        with_tissue=takes_tissue(engines["generator"].module),
        cache_bytes=int(config.data.cache_gib * 2**30),
    )
    if private is not None:
        return private.batches(dataset, schedule.batches, config, world, places)
    positions = schedule.batches
    order: dict[str, Any] = {"batch_size": batch.total, "seed": config.train.seed}
    order |= {"start": positions.start, "stop": positions.stop, "of_rank": batch.slice_of(world.rank)}
    patches = stream(dataset, **order, num_workers=config.train.num_workers, augment=config.data.augment)
    if places is None:
        return patches
    return zip(patches, position_stream(places.position_N3, **order), strict=True)


def patch_geometry(shards: ShardSet) -> FixedState:
    """What `generate` must know of the training set; no subject's position and orientation, which are personal data."""
    geometry = {
        "patch_shape": list(shards.patch_shape),
        "spacing_mm": list(shards.spacing_mm),
        "percentiles": shards.manifest.percentiles,
    }
    return FixedState({"manifest": geometry})
