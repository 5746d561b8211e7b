"""The GAN's trainer: its parts, and what each of them needs."""

from collections.abc import Iterator
from typing import Any

from vesselgan.data.patches import ShardDataset, stream
from vesselgan.formats.shards import ShardSet
from vesselgan.privacy.step import PrivateRun
from vesselgan.privacy.step import critic_step as private_critic_step
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
from vesselgan.trainer.trainer import Trainer
from vesselgan.training.average import SamplingWeights, resumed_average
from vesselgan.training.collapse import CollapseMonitor
from vesselgan.training.engines import Engines
from vesselgan.training.gan import CriticStep, critic_step, train
from vesselgan.training.sample_images import SampleImages

SUMMARY = ("loss/critic", "loss/generator", "loss/wasserstein")


def build_trainer(
    session: Session,
    schedule: Schedule,
    batch: BatchPlan,
    engines: Engines,
    shards: ShardSet,
    private: PrivateRun | None,
) -> Trainer:
    """private: of a private variant; None for others. Restores the moving average of a resumed run."""
    world, variant, settings = session.world, session.config.variant, session.config.train
    generator, phases = engines["generator"].module, Phases(world.device)
    noise = NoiseSampler(settings.seed, settings.batch_size, variant.latent_size, batch.slice_of(world.rank))
    average = resumed_average(generator, settings.ema_decay, session.run_dir, schedule.start)
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
    batches = _batches(session, schedule, batch, shards, private)
    update_critic: CriticStep = critic_step if private is None else private_critic_step
    steps = train(
        engines["critic"], engines["generator"], batches, noise, variant, schedule.steps, phases, update_critic
    )
    return Trainer(
        session,
        schedule,
        steps,
        SkipLimit(engines, settings.max_skipped_steps, "train.max_skipped_steps", session.run_dir, world),
        logger,
        checkpointer,
        followers=[*private_parts, *([] if average is None else [average])],
        observers=[SampleImages(session, schedule, generator, shards, phases)],
    )


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
    session: Session, schedule: Schedule, batch: BatchPlan, shards: ShardSet, private: PrivateRun | None
) -> Iterator[Any]:
    config, world = session.config, session.world
    dataset = ShardDataset(
        shards,
        scaling=config.data.scaling,
        label_threshold=config.data.label_threshold,
        intensity="signed",
        cache_bytes=int(config.data.cache_gib * 2**30),
    )
    if private is not None:
        return private.batches(dataset, schedule.batches, config, world)
    return stream(
        dataset,
        batch_size=batch.total,
        seed=config.train.seed,
        start=schedule.batches.start,
        stop=schedule.batches.stop,
        of_rank=batch.slice_of(world.rank),
        num_workers=config.train.num_workers,
        augment=config.data.augment,
    )


def patch_geometry(shards: ShardSet) -> FixedState:
    """What `generate` must know of the training set; no subject's position and orientation, which are personal data."""
    geometry = {
        "patch_shape": list(shards.patch_shape),
        "spacing_mm": list(shards.spacing_mm),
        "percentiles": shards.manifest.percentiles,
    }
    return FixedState({"manifest": geometry})
