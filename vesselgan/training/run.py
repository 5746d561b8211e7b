"""One training run: settings checked, engines built, loop driven, progress told, checkpoints kept, end marked."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.compose import Command, config_hash
from vesselgan.config.deepspeed import resolve
from vesselgan.config.schema import TrainGan
from vesselgan.core.errors import UsageError
from vesselgan.data.patches import PatchDataset, stream
from vesselgan.formats import run_dir as rundir
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.models.blocks import init_weights
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.privacy.step import PrivateRun, plan_private_run
from vesselgan.privacy.step import critic_step as private_critic_step
from vesselgan.runtime import checkpoint
from vesselgan.runtime.device_memory import peak_bytes
from vesselgan.runtime.distributed import World, barrier, maximum_over_ranks, run_on_rank0
from vesselgan.runtime.engine import Engine, build
from vesselgan.runtime.noise import NoiseSampler
from vesselgan.runtime.nonfinite import check_skipped_steps
from vesselgan.runtime.provenance import collect
from vesselgan.runtime.timing import Phases
from vesselgan.trainer.checkpointer import Checkpointer, keeper_of, steps_of
from vesselgan.trainer.logger import RunLog
from vesselgan.trainer.progress import Meter, Progress
from vesselgan.trainer.setup import staged, train_in_session
from vesselgan.trainer.stopper import StopRequests
from vesselgan.training import architecture
from vesselgan.training.average import MovingAverage, to_sample
from vesselgan.training.collapse import CollapseWatch, alarms, of_critic, real_patches, spread
from vesselgan.training.gan import critic_step, train
from vesselgan.training.run_summary import StepEstimate, explaining_out_of_memory, facts, log_run_summary
from vesselgan.training.sample_images import FixedLatents, real_pictures

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


def _run(config: TrainGan, raw: dict[str, Any], world: World, program: str, requests: StopRequests) -> None:
    run_dir = run_dir_of(config)
    shards = run_on_rank0(world, lambda: ShardSet(Path(config.data.cohort_dir) / "shards" / "gan" / "train"))
    num_steps = steps_of(config, len(shards))
    private = run_on_rank0(world, lambda: plan_private_run(config, shards, num_steps))
    settings = settings_of(config, raw, world.size)
    rehearsal = StepEstimate(config, shards.patch_shape, settings, world)
    with explaining_out_of_memory(rehearsal):
        engines = _engines(config, shards.patch_shape, settings, world, program, private)
    inputs = {"gan/train": content_hash(shards.folder)}
    changes = run_on_rank0(
        world,
        lambda: rundir.prepare(run_dir, "train_gan", config, settings, inputs=inputs, provenance=collect()),
    )
    if rundir.is_finished(run_dir, num_steps, changes):
        if world.is_main:
            print(f"{run_dir}: finished already", flush=True)
        return
    lines = requests.start_watching(
        run_dir, max_minutes=config.train.max_minutes, max_restarts=config.runtime.max_restarts
    )
    (shards,), told = staged([shards], config.data.local_copy_dir, world)
    state, weights_from = _begin(config, run_dir, engines, world, private, changes)
    checkpointer = keeper_of(config, run_dir, world, engines, shards, state)
    if private is not None:
        checkpointer.limit = private.generator_steps
        told = [*told, *private.lines()]
    lines = [checkpointer.check_disk(), *lines, *told, *(f"changed: {change}" for change in changes)]
    session = {"step": state["step"], "ranks": world.size, "inputs": inputs, "weights_from": weights_from}
    run_on_rank0(world, lambda: rundir.record_session(run_dir, config, settings, changes, session, collect()))
    if world.is_main:
        rundir.write_json(run_dir / architecture.FILE, architecture.describe(config.variant, shards.patch_shape))
    log = RunLog(run_dir, is_main=world.is_main, resume_step=state["step"])
    run = _Run(config, run_dir, world, engines, log, shards, requests, checkpointer, private)
    begun = f"resumed at step {state['step']}" if state["step"] else "new run"
    lines.append(f"{begun}; {run.stop} steps in all")
    log_run_summary(log, run_dir, rehearsal, engines, lines)
    with explaining_out_of_memory(rehearsal):
        done, seconds = run.drive(state)
    if done == run.stop:
        told = facts(rehearsal, engines, steps=done, seconds=seconds) | run.privacy()
        if world.is_main:
            rundir.finish(run_dir, told)
        log.line(f"finished: {done} steps in {seconds / 60:.1f} min; {run_dir}")
    log.close()
    barrier()


def _begin(
    config: TrainGan,
    run_dir: Path,
    engines: dict[str, Engine],
    world: World,
    private: PrivateRun | None,
    changes: list[rundir.Change],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(the state to go on from, where a new run has its weights from): the newest checkpoint, else a fresh start."""

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


def settings_of(config: TrainGan, raw: dict[str, Any], ranks: int) -> dict[str, dict[str, Any]]:
    """The JSON resolved for each player. UsageError where the batch cannot be cut so.

    Only the critic takes its share in micro-batches: the generator's BatchNorm needs the whole batch.
    """
    train = config.train
    critic = resolve(raw, batch_size=train.batch_size, batch_per_gpu=train.batch_per_gpu, world_size=ranks)
    if config.variant.penalty_reduction == "batch" and critic["train_micro_batch_size_per_gpu"] != train.batch_size:
        raise UsageError(
            f"variant.penalty_reduction=batch takes one norm over the whole batch, so it cannot be cut: not over "
            f"{ranks} ranks, not by train.batch_per_gpu={train.batch_per_gpu}; take one rank and null, or "
            "penalty_reduction=sample"
        )
    return {
        "critic": critic,
        "generator": resolve(raw, batch_size=train.batch_size, batch_per_gpu=None, world_size=ranks),
    }


def _engines(
    config: TrainGan,
    patch_shape: tuple[int, int, int],
    settings: dict[str, dict[str, Any]],
    world: World,
    program: str,
    private: PrivateRun | None,
) -> dict[str, Engine]:
    variant, seed = config.variant, config.train.seed
    critic = Critic(patch_shape, variant.width, variant.critic_norm)
    generator = Generator(patch_shape, variant.width, variant.latent_size, variant.generator_norm)
    init_weights(critic, seed)
    init_weights(generator, seed + 1)
    rates = {"critic": variant.learning_rate_critic, "generator": variant.learning_rate_generator}
    apart = {} if private is None else {"critic": private.engine(critic, variant, world)}
    return apart | {
        name: build(
            name,
            module,
            learning_rate=rates[name],
            betas=variant.betas,
            settings=settings[name],
            world=world,
            program=program,
            key="variant.precision",
        )
        for name, module in (("critic", critic), ("generator", generator))
        if name not in apart
    }


@dataclass(frozen=True)
class _Run:
    """What the loop needs at hand."""

    config: TrainGan
    run_dir: Path
    world: World
    engines: dict[str, Engine]
    log: RunLog
    shards: ShardSet
    requests: StopRequests
    checkpointer: Checkpointer
    private: PrivateRun | None

    @property
    def stop(self) -> int:
        """Generator steps of the whole run."""
        return self.checkpointer.stop

    def drive(self, state: dict[str, Any]) -> tuple[int, float]:
        """Step from `state` to the end or to a granted stop request; (steps done, seconds of all sessions)."""
        settings, start = self.config.train, state["step"]
        critic, generator = self.engines["critic"], self.engines["generator"]
        draws = NoiseSampler(
            settings.seed, settings.batch_size, self.config.variant.latent_size, self.world.rank, self.world.size
        )
        average = self._average(start)
        fixed = self._fixed_latents()
        num_patches = settings.batch_size * self.config.variant.n_critic
        meter = Meter(state.get("meter"))
        progress = Progress(self.log, start=start, stop=self.stop, patches_per_step=num_patches)
        done, began, checkpointer, phases = start, time.perf_counter(), self.checkpointer, Phases(self.world.device)
        batches, variant, span = self._batches(checkpointer), self.config.variant, {"start": start, "stop": self.stop}
        update = critic_step if self.private is None else private_critic_step
        for done, updates in train(
            critic, generator, batches, draws, variant, **span, phase=phases, update_critic=update
        ):
            for scalars in updates:
                meter.take(scalars)
            self._count_releases()
            told = {"field": "train.max_skipped_steps", "step": done, "run_dir": self.run_dir, "world": self.world}
            check_skipped_steps(self.engines, settings.max_skipped_steps, **told)
            if average is not None:
                average.update(generator.module, done)
            progress.advance(done)
            if done % settings.log_every == 0 or done == self.stop:
                values = meter.read(self.world) | {"save_ms": checkpointer.save_ms}
                self._tell(done, values | phases.read(progress.steps_since(done)), progress)
            is_asked = self.requests.should_stop(step_s=progress.step_s, save_s=checkpointer.save_s)
            paused_at = time.perf_counter()
            if done % settings.image_every == 0 or done == self.stop:
                with phases("pictures"):
                    self._draw(done, fixed)
            if checkpointer.is_due(done) or is_asked:
                told = {"seconds": state["seconds"] + time.perf_counter() - began, "meter": meter.to_json(self.world)}
                told |= self.privacy()
                self.log.flush()
                with phases("save"):
                    checkpointer.save(done, told, to_sample(generator.module, average, draws, self.world.device))
                checkpointer.save_s = time.perf_counter() - paused_at
            progress.paused(time.perf_counter() - paused_at)
            if is_asked and done < self.stop:
                self.log.line(self.requests.leave(done))
                break
        return done, state["seconds"] + time.perf_counter() - began

    def _average(self, start: int) -> MovingAverage | None:
        if self.config.train.ema_decay is None:
            return None
        average = MovingAverage(self.engines["generator"].module, self.config.train.ema_decay)
        if start:
            average.restore(checkpoint.read_weights(self.run_dir, "generator_ema", checkpoint.name_of(start))[0])
        return average

    def _batches(self, checkpointer: Checkpointer) -> Any:
        settings, data = self.config.train, self.config.data
        dataset = PatchDataset(
            self.shards,
            scaling=data.scaling,
            label_threshold=data.label_threshold,
            intensity="signed",
            cache_bytes=int(data.cache_gib * 2**30),
        )
        positions = range(checkpointer.first_batch, checkpointer.batches_after(self.stop))
        if self.private is not None:
            return self.private.batches(dataset, positions, self.config, self.world)
        return stream(
            dataset,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start=positions.start,
            stop=positions.stop,
            rank=self.world.rank,
            world_size=self.world.size,
            num_workers=settings.num_workers,
            augment=self.config.data.augment,
        )

    def _count_releases(self) -> None:
        if self.private is not None:
            self.private.record_releases(self.run_dir, self.engines["critic"], self.world)

    def privacy(self) -> dict[str, Any]:
        """{"privacy": what is spent by now}, for the checkpoint and finished.json; nothing without privacy."""
        return {} if self.private is None else {"privacy": self.private.to_json(self.engines["critic"])}

    def _tell(self, done: int, values: dict[str, float], progress: Progress) -> None:
        for name, engine in self.engines.items():
            values |= {f"{name}_loss_scale": engine.loss_scale, f"{name}_skipped_total": float(engine.skipped_steps)}
        names = [name for name in ("loss/critic", "loss/generator", "loss/wasserstein") if name in values]
        losses = "  ".join(f"{name} {values[name]:+.3f}" for name in names) or "every step skipped"
        values["peak_memory_gib"] = maximum_over_ranks(peak_bytes(self.world.device) / 2**30, self.world)
        values |= self._watch_collapse(done, values)
        if self.private is not None:
            values |= self.private.log_epsilon(self.engines["critic"], self.log)
        progress.tell(done, values, losses)
        for line in alarms(values):
            self.log.line(line)

    def _watch_collapse(self, done: int, values: dict[str, float]) -> dict[str, float]:
        """The critic at every telling, the samples where pictures are drawn too; rank 0 alone tells."""
        found = of_critic(values)
        if self.log.is_main and (done % self.config.train.image_every == 0 or done == self.stop):
            data, train = self.config.data, self.config.train
            real = real_patches(self.shards, scaling=data.scaling, label_threshold=data.label_threshold)
            watch = CollapseWatch(train.seed, self.config.variant.latent_size, spread(real))
            found |= watch.of_samples(self.engines["generator"].module, self.world.device)
        return found

    def _fixed_latents(self) -> FixedLatents:
        """The latents whose samples are drawn; a new run first draws real patches beside them."""
        data, log = self.config.data, self.log
        if self.checkpointer.start == 0 and log.is_main:
            real = real_pictures(self.shards, scaling=data.scaling, label_threshold=data.label_threshold)
            for name, picture in real.items():
                log.image(0, name, picture)
        latent_size = self.config.variant.latent_size
        return FixedLatents(self.config.train.seed, latent_size, self.shards.spacing_mm, data.label_threshold)

    def _draw(self, done: int, fixed: FixedLatents) -> None:
        if self.world.is_main:
            for name, picture in fixed.pictures(self.engines["generator"].module, self.world.device).items():
                self.log.image(done, name, picture)
