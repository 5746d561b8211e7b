"""One training run: settings checked, engines built, loop driven, progress told, checkpoints kept, end marked."""

import math
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vesselgan.config.compose import Command, config_hash
from vesselgan.config.deepspeed import resolve
from vesselgan.config.schema import TrainGan
from vesselgan.data.patches import PatchDataset, stream
from vesselgan.data.sampler import steps_per_epoch
from vesselgan.errors import NumericError
from vesselgan.models.blocks import start_weights
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.runtime import checkpoint, distributed, rundir
from vesselgan.runtime.distributed import World
from vesselgan.runtime.engine import Engine, build
from vesselgan.runtime.log import RunLog
from vesselgan.runtime.progress import Meter, Progress
from vesselgan.runtime.session import train_in_session
from vesselgan.runtime.stopping import StopRequests
from vesselgan.shards import ShardSet
from vesselgan.training.average import MovingAverage, to_sample
from vesselgan.training.gan import Draws, train
from vesselgan.training.samples import FixedLatents

PROGRAM = "deepspeed launch/train_gan.py"


def train_gan(command: Command) -> None:
    """Train, or resume, the GAN that `command` describes; a finished run says so and returns."""
    precision = command.config.variant.precision
    train_in_session(command, _run, program=PROGRAM, precision=precision, key="variant.precision")


def run_dir_of(config: TrainGan) -> Path:
    """The run directory: as given, else named after the variant and the configuration's hash."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path(config.work_dir) / "runs" / f"{config.variant.name}-{config_hash(config)}"


def steps_of(config: TrainGan, num_pairs: int) -> int:
    """Generator steps of the whole run: max_steps, else epochs over the pairs."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    batches = config.train.epochs * steps_per_epoch(num_pairs, config.train.batch_size)
    return max(1, batches // config.variant.n_critic)


def _run(config: TrainGan, raw: dict[str, Any], world: World, program: str) -> None:
    run_dir = run_dir_of(config)
    shards = distributed.together(world, lambda: ShardSet(Path(config.data.cohort_dir) / "shards" / "gan" / "train"))
    settings = resolve(
        raw, batch_size=config.train.batch_size, batch_per_gpu=config.train.batch_per_gpu, world_size=world.size
    )
    engines = _engines(config, shards.patch_shape, settings, world, program)
    both = {"critic": settings, "generator": settings}
    distributed.together(world, lambda: rundir.prepare(run_dir, "train_gan", config, both))
    if rundir.is_finished(run_dir):
        if world.is_main:
            print(f"{run_dir}: finished already", flush=True)
        return
    state = checkpoint.load(run_dir, config.checkpoint, engines, world=world) or {"step": 0, "seconds": 0.0}
    log = RunLog(run_dir, is_main=world.is_main, resume_step=state["step"])
    run = _Run(config, run_dir, world, engines, log, shards, steps_of(config, len(shards)))
    _say_first_lines(run, state["step"])
    done, seconds = run.drive(state)
    if done == run.stop:
        if world.is_main:
            rundir.finish(run_dir, _facts(engines, steps=done, seconds=seconds, world=world))
        log.line(f"finished: {done} steps in {seconds / 60:.1f} min; {run_dir}")
    log.close()
    distributed.barrier()


def _engines(
    config: TrainGan, patch_shape: tuple[int, int, int], settings: dict[str, Any], world: World, program: str
) -> dict[str, Engine]:
    variant, seed = config.variant, config.train.seed
    critic = Critic(patch_shape, variant.width, variant.critic_norm)
    generator = Generator(patch_shape, variant.width, variant.latent_size)
    start_weights(critic, seed)
    start_weights(generator, seed + 1)
    rates = {"critic": variant.learning_rate_critic, "generator": variant.learning_rate_generator}
    agreeing = f"{program} --deepspeed_config ds_bf16.json variant.precision=bf16"
    return {
        name: build(
            name,
            module,
            learning_rate=rates[name],
            betas=variant.betas,
            settings=settings,
            world=world,
            agreeing_command=agreeing,
        )
        for name, module in (("critic", critic), ("generator", generator))
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
    stop: int
    """Generator steps of the whole run."""

    def drive(self, state: dict[str, Any]) -> tuple[int, float]:
        """Step from `state` to the end or to a granted stop request; (steps done, seconds of all sittings)."""
        settings, start = self.config.train, state["step"]
        critic, generator = self.engines["critic"], self.engines["generator"]
        draws = Draws(
            settings.seed, settings.batch_size, self.config.variant.latent_size, self.world.rank, self.world.size
        )
        average = self._average(start)
        fixed = FixedLatents(settings.seed, self.config.variant.latent_size, self.shards.spacing_mm)
        meter, progress = Meter(state.get("meter")), Progress(self.log, start=start, stop=self.stop)
        done, save_s, began = start, 0.0, time.perf_counter()
        with StopRequests(self.run_dir, self.world, max_minutes=settings.max_minutes) as requests:
            variant = self.config.variant
            for done, scalars in train(
                critic, generator, self._batches(start), draws, variant, start=start, stop=self.stop
            ):
                meter.take(scalars)
                if average is not None:
                    average.update(generator.module, done)
                if done % settings.log_every == 0 or done == self.stop:
                    self._tell(done, meter.read(self.world), progress)
                is_asked = requests.are_granted(step_s=progress.step_s, save_s=save_s)
                paused_at = time.perf_counter()
                if done % settings.picture_every == 0 or done == self.stop:
                    self.log.image(done, "samples", fixed.picture(generator.module, self.world.device))
                if done % settings.checkpoint_every == 0 or done == self.stop or is_asked:
                    seconds = state["seconds"] + time.perf_counter() - began
                    told = self._told() | {"step": done, "seconds": seconds, "meter": meter.to_json()}
                    self._save(done, told, to_sample(generator.module, average, draws, self.world.device))
                    save_s = time.perf_counter() - paused_at
                progress.paused(time.perf_counter() - paused_at)
                if is_asked and done < self.stop:
                    requests.mark_for_requeue(done)
                    self.log.line(
                        f"stopped at step {done}, saved: {requests.reason}; the same command goes on from here"
                    )
                    break
        return done, state["seconds"] + time.perf_counter() - began

    def _average(self, start: int) -> MovingAverage | None:
        if self.config.train.ema_decay is None:
            return None
        average = MovingAverage(self.engines["generator"].module, self.config.train.ema_decay)
        if start:
            average.restore(checkpoint.read_weights(self.run_dir, "generator_ema", checkpoint.name_of(start))[0])
        return average

    def _batches(self, start: int) -> Any:
        settings, n_critic, data = self.config.train, self.config.variant.n_critic, self.config.data
        dataset = PatchDataset(
            self.shards,
            scaling=data.scaling,
            label_threshold=data.label_threshold,
            intensity="signed",
            cache_bytes=int(data.cache_gib * 2**30),
        )
        return stream(
            dataset,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start=start * n_critic,
            stop=self.stop * n_critic,
            rank=self.world.rank,
            world_size=self.world.size,
            num_workers=settings.num_workers,
            augment=self.config.data.augment,
        )

    def _tell(self, done: int, values: dict[str, float], progress: Progress) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise NumericError(
                f"{self.run_dir}: {', '.join(bad)} not finite before step {done}; the last checkpoint is from before; "
                "start anew with lower learning rates, or in fp32"
            )
        for name, engine in self.engines.items():
            values |= {f"{name}_loss_scale": engine.loss_scale, f"{name}_skipped_total": float(engine.skipped_steps)}
        losses = "  ".join(f"{name} {values[name]:+.3f}" for name in ("critic_loss", "generator_loss", "wasserstein"))
        progress.tell(done, values, losses)

    def _told(self) -> dict[str, Any]:
        """What every checkpoint says of the training set, for `generate`; the affine is the first subject's."""
        first = next(iter(self.shards.subjects.values()))
        geometry = {
            "patch_shape": list(self.shards.patch_shape),
            "spacing_mm": list(self.shards.spacing_mm),
            "affine": first["affine"],
            "upper_percentile": self.shards.manifest.upper_percentile,
        }
        return {"manifest": geometry, "config_hash": config_hash(self.config)}

    def _save(self, done: int, told: dict[str, Any], extra: dict[str, Any]) -> None:
        keep_last = self.config.train.keep_last
        checkpoint.save(self.run_dir, done, self.engines, told, keep_last=keep_last, world=self.world, extra=extra)


def _say_first_lines(run: _Run, start: int) -> None:
    config, log = run.config, run.log
    counts = {name: count_parameters(engine.module) for name, engine in run.engines.items()}
    log.line(f"run directory: {run.run_dir} (tensorboard --logdir {run.run_dir}/tensorboard)")
    log.line(
        f"{config.variant.name} in {config.variant.precision} on {run.world.size} x {run.world.device.type}, "
        f"configuration {config_hash(config)}; "
        f"parameters: generator {counts['generator']:,}, critic {counts['critic']:,}"
    )
    log.line(f"{'resumed at step ' + str(start) if start else 'new run'}; {run.stop} steps in all")


def count_parameters(module: torch.nn.Module) -> int:
    """Parameters as the paper's Table 2 counts them: frozen biases included."""
    return sum(parameter.numel() for parameter in module.parameters())


def _facts(engines: dict[str, Engine], *, steps: int, seconds: float, world: World) -> dict[str, Any]:
    """For the paper's Table 2: parameters, peak memory, hours."""
    if world.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(world.device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "steps": steps,
        "hours": seconds / 3600,
        "peak_gib_per_rank": peak / 2**30,
        "ranks": world.size,
        "device": world.device.type,
        "parameters": {name: count_parameters(engine.module) for name, engine in engines.items()},
    }
