"""One training run of the GAN: check the settings, build the engines, train, log, checkpoint, mark the end."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.compose import Command, config_hash
from vesselgan.config.schema import TrainGan
from vesselgan.data.patches import ShardDataset, stream
from vesselgan.formats.cohort import shards_dir
from vesselgan.formats.run_changes import Change
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.privacy.step import PrivateRun, plan_private_run
from vesselgan.privacy.step import critic_step as private_critic_step
from vesselgan.runtime import checkpoint
from vesselgan.runtime.device_memory import peak_bytes
from vesselgan.runtime.distributed import World, barrier, maximum_over_ranks, run_on_rank0
from vesselgan.runtime.noise import NoiseSampler
from vesselgan.runtime.nonfinite import check_skipped_steps
from vesselgan.runtime.provenance import collect
from vesselgan.runtime.timing import Phases
from vesselgan.trainer.checkpointer import Checkpointer, num_generator_steps
from vesselgan.trainer.logger import RunLog
from vesselgan.trainer.progress import Meter, Progress
from vesselgan.trainer.setup import copy_to_node, train_in_session
from vesselgan.trainer.stopper import Stopper
from vesselgan.training import architecture
from vesselgan.training.average import MovingAverage, sampling_weights
from vesselgan.training.collapse import (
    CollapseDetector,
    critic_metrics,
    mean_pairwise_distance,
    real_patches,
    warning_lines,
)
from vesselgan.training.engines import Engines, build_engines, engine_settings
from vesselgan.training.gan import train
from vesselgan.training.run_summary import StepEstimate, explaining_out_of_memory, log_run_summary, run_facts
from vesselgan.training.sample_images import FixedLatents, real_images

PROGRAM = "deepspeed launch/train_gan.py"


def train_gan(command: Command) -> None:
    """Train, or resume, the GAN that `command` describes; a finished run says so and returns."""
    precision = command.config.variant.precision
    run_dir = run_dir_of(command.config)
    train_in_session(command, _run, run_dir=run_dir, program=PROGRAM, precision=precision, key="variant.precision")


def run_dir_of(config: TrainGan) -> Path:
    """The run directory: as given, else named after the variant and the configuration's hash."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path(config.work_dir) / "runs" / f"{config.variant.name}-{config_hash(config)}"


def _run(config: TrainGan, raw: dict[str, Any], world: World, program: str, stopper: Stopper) -> None:
    run_dir = run_dir_of(config)
    shards = run_on_rank0(world, lambda: ShardSet(shards_dir(config.data.cohort_dir, "gan", "train")))
    num_steps = num_generator_steps(config, len(shards))
    private = run_on_rank0(world, lambda: plan_private_run(config, shards, num_steps))
    settings = engine_settings(config, raw, world.size)
    estimate = StepEstimate(config, shards.patch_shape, settings, world)
    with explaining_out_of_memory(estimate):
        engines = build_engines(config, shards.patch_shape, settings, world, program, private)
    inputs = {"gan/train": content_hash(shards.folder)}
    changes = run_on_rank0(
        world,
        lambda: RunDir(run_dir).load_or_init("train_gan", config, settings, inputs=inputs, provenance=collect()),
    )
    if RunDir(run_dir).is_finished(num_steps, changes):
        if world.is_main:
            print(f"{run_dir}: finished already", flush=True)
        return
    watching = stopper.start_watching(
        run_dir, max_minutes=config.train.max_minutes, max_restarts=config.runtime.max_restarts
    )
    (shards,), copied = copy_to_node([shards], config.data.local_copy_dir, world)
    state, weights_from = _load_or_init(config, run_dir, engines, world, private, changes)
    checkpointer = Checkpointer.from_state(config, run_dir, world, engines, shards, state)
    checkpointer.max_steps = None if private is None else private.generator_steps
    privacy = [] if private is None else private.lines()
    lines = [checkpointer.check_disk(), *watching, *copied, *privacy, *(f"changed: {change}" for change in changes)]
    session = {"step": state["step"], "ranks": world.size, "inputs": inputs, "weights_from": weights_from}
    run_on_rank0(world, lambda: RunDir(run_dir).record_session(config, settings, changes, session, collect()))
    if world.is_main:
        RunDir(run_dir).write_architecture(architecture.describe(config.variant, shards.patch_shape))
    log = RunLog(run_dir, is_main=world.is_main, resume_step=state["step"])
    origin = f"resumed at step {state['step']}" if state["step"] else "new run"
    lines.append(f"{origin}; {checkpointer.stop} steps in all")
    log_run_summary(log, run_dir, estimate, engines, lines)
    with explaining_out_of_memory(estimate):
        trainer = _Trainer(config, run_dir, world, engines, log, shards, stopper, checkpointer, private, state)
        steps, seconds = trainer.train_loop()
    if steps == checkpointer.stop:
        facts = run_facts(estimate, engines, steps=steps, seconds=seconds) | trainer.privacy()
        if world.is_main:
            RunDir(run_dir).mark_finished(facts)
        log.line(f"finished: {steps} steps in {seconds / 60:.1f} min; {run_dir}")
    log.close()
    barrier()


def _load_or_init(
    config: TrainGan,
    run_dir: Path,
    engines: Engines,
    world: World,
    private: PrivateRun | None,
    changes: list[Change],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(the newest checkpoint's state, or that of step 0; the checkpoint that a new run has its weights from)."""

    def accept(state: dict[str, Any]) -> None:
        if private is not None:
            private.load_or_init(run_dir, state, changes, engines["critic"], world)

    state = checkpoint.load(run_dir, config.checkpoint, engines, world=world, accept=accept)
    if state is not None:
        return state, None
    source, state = config.init_from, {"step": 0, "seconds": 0.0}
    weights_from = None if source is None else checkpoint.init_from(Path(source), engines, world=world)
    accept(state)
    return state, weights_from


@dataclass
class _Trainer:
    """The loop and its components."""

    config: TrainGan
    run_dir: Path
    world: World
    engines: Engines
    log: RunLog
    shards: ShardSet
    stopper: Stopper
    checkpointer: Checkpointer
    private: PrivateRun | None
    state: dict[str, Any]
    """Of the checkpoint that the run continues from, or of step 0."""

    def __post_init__(self) -> None:
        train_config, variant, world = self.config.train, self.config.variant, self.world
        self.start: int = self.state["step"]
        self.stop = self.checkpointer.stop
        self.noise = NoiseSampler(
            train_config.seed, train_config.batch_size, variant.latent_size, world.rank, world.size
        )
        self.average = self._moving_average()
        label_threshold = self.config.data.label_threshold
        self.fixed = FixedLatents(train_config.seed, variant.latent_size, self.shards.spacing_mm, label_threshold)
        self._log_real_images()
        self.meter = Meter(self.state.get("meter"))
        patches_per_step = train_config.batch_size * variant.n_critic
        self.progress = Progress(self.log, start=self.start, stop=self.stop, patches_per_step=patches_per_step)
        self.started_at = time.perf_counter()
        self.phases = Phases(world.device)

    @property
    def seconds(self) -> float:
        """Of training in all sessions."""
        return self.state["seconds"] + time.perf_counter() - self.started_at

    def train_loop(self) -> tuple[int, float]:
        """Train to the end or to a request to stop; returns (steps done, seconds of all sessions)."""
        train_config, checkpointer, progress = self.config.train, self.checkpointer, self.progress
        critic, generator, step = self.engines["critic"], self.engines["generator"], self.start
        for step, updates in train(
            critic,
            generator,
            self._batches(),
            self.noise,
            self.config.variant,
            start=self.start,
            stop=self.stop,
            phase=self.phases,
            private_critic_step=None if self.private is None else private_critic_step,
        ):
            for metrics in updates:
                self.meter.update(metrics)
            self._count_releases()
            check_skipped_steps(
                self.engines,
                train_config.max_skipped_steps,
                field="train.max_skipped_steps",
                step=step,
                run_dir=self.run_dir,
                world=self.world,
            )
            if self.average is not None:
                self.average.update(generator.module, step)
            progress.advance(step)
            if step % train_config.log_every == 0 or step == self.stop:
                self._log(step)
            should_stop = self.stopper.should_stop(step_s=progress.step_s, save_s=checkpointer.save_s)
            paused_at = time.perf_counter()
            if self._are_images_due(step):
                self._log_sample_images(step)
            if checkpointer.is_due(step) or should_stop:
                self._save(step)
                checkpointer.save_s = time.perf_counter() - paused_at
            progress.exclude(time.perf_counter() - paused_at)
            if should_stop and step < self.stop:
                self.log.line(self.stopper.write_requeue(step))
                break
        return step, self.seconds

    def privacy(self) -> dict[str, Any]:
        """{"privacy": the budget spent so far}, for the checkpoint and finished.json; empty without privacy."""
        return {} if self.private is None else {"privacy": self.private.to_json(self.engines["critic"])}

    def _moving_average(self) -> MovingAverage | None:
        if self.config.train.ema_decay is None:
            return None
        average = MovingAverage(self.engines["generator"].module, self.config.train.ema_decay)
        if self.start:
            name = checkpoint.name_of(self.start)
            average.restore(checkpoint.read_weights(self.run_dir, "generator_ema", name)[0])
        return average

    def _batches(self) -> Iterator[Any]:
        train_config, data = self.config.train, self.config.data
        dataset = ShardDataset(
            self.shards,
            scaling=data.scaling,
            label_threshold=data.label_threshold,
            intensity="signed",
            cache_bytes=int(data.cache_gib * 2**30),
        )
        positions = range(self.checkpointer.first_batch, self.checkpointer.batches_after(self.stop))
        if self.private is not None:
            return self.private.batches(dataset, positions, self.config, self.world)
        return stream(
            dataset,
            batch_size=train_config.batch_size,
            seed=train_config.seed,
            start=positions.start,
            stop=positions.stop,
            rank=self.world.rank,
            world_size=self.world.size,
            num_workers=train_config.num_workers,
            augment=data.augment,
        )

    def _count_releases(self) -> None:
        if self.private is not None:
            self.private.record_releases(self.run_dir, self.engines["critic"], self.world)

    def _save(self, step: int) -> None:
        """Write a checkpoint; the log before it is made durable first."""
        state = {"seconds": self.seconds, "meter": self.meter.to_json(self.world)} | self.privacy()
        self.log.flush()
        with self.phases("checkpoint"):
            weights = sampling_weights(self.engines["generator"].module, self.average, self.noise, self.world.device)
            self.checkpointer.save(step, state, weights)

    def _log(self, step: int) -> None:
        metrics = self.meter.reduce(self.world) | {"checkpoint/write_ms": self.checkpointer.write_ms}
        metrics |= self.phases.read(self.progress.steps_since_log(step))
        for name, engine in self.engines.items():
            metrics[f"amp/{name}_loss_scale"] = engine.loss_scale
            metrics[f"amp/{name}_skipped_total"] = float(engine.skipped_steps)
        metrics["memory/peak_gib"] = maximum_over_ranks(peak_bytes(self.world.device) / 2**30, self.world)
        metrics |= self._collapse_metrics(step, metrics)
        if self.private is not None:
            metrics |= self.private.log_epsilon(self.engines["critic"], self.log)
        names = [name for name in ("loss/critic", "loss/generator", "loss/wasserstein") if name in metrics]
        summary = "  ".join(f"{name} {metrics[name]:+.3f}" for name in names) or "every step skipped"
        self.progress.log(step, metrics, summary)
        for line in warning_lines(metrics):
            self.log.line(line)

    def _collapse_metrics(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Of the critic, and where sample images are due, of the samples; those on rank 0 alone."""
        collapse = critic_metrics(metrics)
        if self.log.is_main and self._are_images_due(step):
            data, train_config = self.config.data, self.config.train
            real = real_patches(self.shards, scaling=data.scaling, label_threshold=data.label_threshold)
            detector = CollapseDetector(
                train_config.seed, self.config.variant.latent_size, mean_pairwise_distance(real)
            )
            collapse |= detector.sample_metrics(self.engines["generator"].module, self.world.device)
        return collapse

    def _are_images_due(self, step: int) -> bool:
        return step % self.config.train.image_every == 0 or step == self.stop

    def _log_sample_images(self, step: int) -> None:
        with self.phases("sample_images"):
            if self.log.is_main:
                images = self.fixed.sample_images(self.engines["generator"].module, self.world.device)
                for name, image in images.items():
                    self.log.image(step, name, image)

    def _log_real_images(self) -> None:
        """Real patches to compare the samples with; once in a run's life."""
        data = self.config.data
        if self.start == 0 and self.log.is_main:
            images = real_images(self.shards, scaling=data.scaling, label_threshold=data.label_threshold)
            for name, image in images.items():
                self.log.image(0, name, image)
