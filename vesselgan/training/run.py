"""One training run: settings checked, engines built, loop driven, progress told, checkpoints kept, end marked."""

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vesselgan.config.compose import Command, config_hash
from vesselgan.config.deepspeed import agree, read, resolve
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
from vesselgan.shards import ShardSet
from vesselgan.training.average import MovingAverage, to_sample
from vesselgan.training.gan import Draws, Scalars, train
from vesselgan.training.samples import FixedLatents

PROGRAM = "deepspeed launch/train_gan.py"


def train_gan(command: Command) -> None:
    """Train, or resume, the GAN that `command` describes; a finished run says so and returns."""
    config: TrainGan = command.config
    name, raw = read(command.deepspeed_config, config.variant.precision)
    program = " ".join([PROGRAM, *(word for word in command.words if not word.startswith("variant.precision="))])
    agree(name, raw, config.variant.precision, command=program, key="variant.precision")
    world = distributed.start(config.runtime.device)
    try:
        _run(config, raw, world, program)
    finally:
        distributed.stop()


def run_dir_of(config: TrainGan) -> Path:
    """The run directory: as given, else named after the variant and the configuration's hash."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path(config.work_dir) / "runs" / f"{config.variant.name}-{config_hash(config)}"


def _run(config: TrainGan, raw: dict[str, Any], world: World, program: str) -> None:
    run_dir = run_dir_of(config)
    shards = distributed.together(world, lambda: ShardSet(Path(config.data.cohort_dir) / "shards" / "gan" / "train"))
    total_steps = steps_of(config, len(shards))
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
    average = None
    if config.train.ema_decay is not None:
        average = MovingAverage(engines["generator"].module, config.train.ema_decay)
    state = checkpoint.load(run_dir, config.checkpoint, engines, world=world)
    start = state["step"] if state else 0
    if average is not None and state:
        average.restore(checkpoint.read_weights(run_dir, "generator_ema", checkpoint.name_of(start))[0])
    log = RunLog(run_dir, is_main=world.is_main, resume_step=start)
    _say_first_lines(log, config, run_dir, world, engines, start=start, stop=total_steps)
    told = {"manifest": _geometry(shards), "config_hash": config_hash(config)}
    seconds = _drive(config, run_dir, shards, engines, average, log, world, start=start, stop=total_steps, told=told)
    seconds += state["seconds"] if state else 0.0
    if world.is_main:
        rundir.finish(run_dir, _facts(engines, steps=total_steps, seconds=seconds, world=world))
    log.line(f"finished: {total_steps} steps in {seconds / 60:.1f} min; {run_dir}")
    log.close()
    distributed.barrier()


def steps_of(config: TrainGan, num_pairs: int) -> int:
    """Generator steps of the whole run: max_steps, else epochs over the pairs."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    batches = config.train.epochs * steps_per_epoch(num_pairs, config.train.batch_size)
    return max(1, batches // config.variant.n_critic)


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


def _drive(
    config: TrainGan,
    run_dir: Path,
    shards: ShardSet,
    engines: dict[str, Engine],
    average: MovingAverage | None,
    log: RunLog,
    world: World,
    *,
    start: int,
    stop: int,
    told: dict[str, Any],
) -> float:
    """Run the steps from `start` to `stop`; returns the seconds this took."""
    settings, n_critic = config.train, config.variant.n_critic
    dataset = PatchDataset(
        shards, scaling=config.data.scaling, label_threshold=config.data.label_threshold, intensity="signed"
    )
    batches = stream(
        dataset,
        batch_size=settings.batch_size,
        seed=settings.seed,
        start=start * n_critic,
        stop=stop * n_critic,
        rank=world.rank,
        world_size=world.size,
        num_workers=settings.num_workers,
    )
    draws = Draws(settings.seed, settings.batch_size, config.variant.latent_size, world.rank, world.size)
    fixed = FixedLatents(settings.seed, config.variant.latent_size, shards.spacing_mm)
    progress = Progress(log, start=start, stop=stop, patches_per_step=settings.batch_size * n_critic)
    began = time.perf_counter()
    pending: list[Scalars] = []
    steps = train(engines["critic"], engines["generator"], batches, draws, config.variant, start=start, stop=stop)
    for done, scalars in steps:
        pending.append(scalars)
        if average is not None:
            average.update(engines["generator"].module, done)
        if done % settings.log_every == 0 or done == stop:
            values = _means(pending, world)
            pending.clear()
            _refuse_non_finite(values, done, run_dir)
            progress.tell(done, values, engines)
        if done % settings.picture_every == 0 or done == stop:
            log.image(done, "samples", fixed.picture(engines["generator"].module, world.device))
        if done % settings.checkpoint_every == 0 or done == stop:
            state = told | {"step": done, "seconds": time.perf_counter() - began}
            extra = to_sample(engines["generator"].module, average, draws, world.device)
            checkpoint.save(run_dir, done, engines, state, keep_last=settings.keep_last, world=world, extra=extra)
    return time.perf_counter() - began


class Progress:
    """Scalars for the log every few steps, and lines with the measured step time and the predicted end."""

    def __init__(self, log: RunLog, *, start: int, stop: int, patches_per_step: int) -> None:
        self._log, self._stop, self._patches = log, stop, patches_per_step
        self._last_step, self._last_time = start, time.perf_counter()
        self._next_line = 0.0
        self._is_terminal = sys.stderr.isatty()

    def tell(self, done: int, values: dict[str, float], engines: dict[str, Engine]) -> None:
        now = time.perf_counter()
        step_s = (now - self._last_time) / max(1, done - self._last_step)
        self._last_step, self._last_time = done, now
        values |= {"step_ms": 1000 * step_s, "patches_per_s": self._patches / step_s}
        for name, engine in engines.items():
            values |= {f"{name}_loss_scale": engine.loss_scale, f"{name}_skipped_total": float(engine.skipped_steps)}
        self._log.scalars(done, values)
        if self._is_terminal or now >= self._next_line or done == self._stop:
            # A line a few times a minute in a log file, every time on a terminal.
            self._next_line = now + 10.0
            left_min = (self._stop - done) * step_s / 60
            self._log.line(
                f"step {done}/{self._stop}  critic {values['critic_loss']:+.3f}  generator "
                f"{values['generator_loss']:+.3f}  wasserstein {values['wasserstein']:+.3f}  "
                f"{values['step_ms']:.0f} ms a step, {left_min:.1f} min left"
            )


def _geometry(shards: ShardSet) -> dict[str, Any]:
    """What a synthetic patch inherits from the training set; its affine is the first subject's."""
    first = next(iter(shards.subjects.values()))
    return {
        "patch_shape": list(shards.patch_shape),
        "spacing_mm": list(shards.spacing_mm),
        "affine": first["affine"],
        "upper_percentile": shards.manifest.upper_percentile,
    }


def _means(pending: list[Scalars], world: World) -> dict[str, float]:
    names = sorted(pending[0])
    table = torch.stack(
        [torch.stack([step[name].to(world.device, torch.float32) for name in names]) for step in pending]
    )
    return dict(zip(names, distributed.mean_over_ranks(table.mean(0), world).tolist(), strict=True))


def _refuse_non_finite(values: dict[str, float], step: int, run_dir: Path) -> None:
    bad = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
    if bad:
        raise NumericError(
            f"{run_dir}: {', '.join(bad)} not finite before step {step}; the last checkpoint is from before; "
            "resume it with lower learning rates, or in fp32"
        )


def _say_first_lines(
    log: RunLog, config: TrainGan, run_dir: Path, world: World, engines: dict[str, Engine], *, start: int, stop: int
) -> None:
    counts = {name: trainable_parameters(engine.module) for name, engine in engines.items()}
    log.line(f"run directory: {run_dir} (tensorboard --logdir {run_dir}/tensorboard)")
    log.line(
        f"{config.variant.name} in {config.variant.precision} on {world.size} x {world.device.type}, configuration "
        f"{config_hash(config)}; parameters: generator {counts['generator']:,}, critic {counts['critic']:,}"
    )
    log.line(f"{'resumed at step ' + str(start) if start else 'new run'}; {stop} steps in all")


def trainable_parameters(module: torch.nn.Module) -> int:
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
        "parameters": {name: trainable_parameters(engine.module) for name, engine in engines.items()},
    }
