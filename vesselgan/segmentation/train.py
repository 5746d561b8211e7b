"""Train the U-Net on real, synthetic or both kinds of patches; everything is chosen on the real validation patches.

Equal effort for every source: `unet.max_steps` optimizer steps of `unet.batch_size` patches (the paper does not say how
it compared). Whatever the source, early stopping and the choice of the checkpoint see real validation patches alone;
the test subjects have no shards, so nothing here can be tuned on them.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function as phase

from vesselgan.config.compose import Command, config_hash
from vesselgan.config.deepspeed import agree, read, resolve
from vesselgan.config.schema import TrainUnet
from vesselgan.data.patches import PatchDataset, stream
from vesselgan.errors import DataError, NumericError, UsageError
from vesselgan.losses.segmentation import dice_loss
from vesselgan.models.unet import Unet, check_unet_shape, start_unet
from vesselgan.runtime import checkpoint, distributed, rundir
from vesselgan.runtime.distributed import World
from vesselgan.runtime.engine import Engine, build
from vesselgan.runtime.log import RunLog
from vesselgan.segmentation.validation import Scores, Selection, picture, validate
from vesselgan.shards import ShardSet

# N batch, C channel (0 image, 1 vessel label), X Y Z voxels
PROGRAM = "deepspeed launch/train_unet.py"
PLAYER = "unet"
SECONDS_PER_LINE = 10.0


def train_unet(command: Command) -> None:
    """Train, or resume, the U-Net that `command` describes; a finished run says so and returns."""
    config: TrainUnet = command.config
    name, raw = read(command.deepspeed_config, config.unet.precision)
    program = " ".join([PROGRAM, *(word for word in command.words if not word.startswith("unet.precision="))])
    agree(name, raw, config.unet.precision, command=program, key="unet.precision")
    world = distributed.start(config.runtime.device)
    try:
        _run(config, raw, world, program)
    finally:
        distributed.stop()


def run_dir_of(config: TrainUnet) -> Path:
    """The run directory: as given, else named after the source and the configuration's hash."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path(config.work_dir) / "runs" / f"unet-{config.data.source}-{config_hash(config)}"


def open_shards(config: TrainUnet) -> tuple[list[ShardSet], ShardSet]:
    """(the sets to train on, the real validation set). UsageError or DataError for sets that may not be used so."""
    real_dir = Path(config.data.cohort_dir) / "shards" / "unet"
    chosen = []
    if config.data.source in ("real", "both"):
        chosen.append(_shards_of_origin(real_dir / "train", "real"))
    if config.data.source in ("synthetic", "both"):
        if config.synthetic is None:
            raise UsageError(
                f"data.source={config.data.source} needs synthetic=DIR, a folder of generated shards "
                "(launch/generate.py writes them to RUN/synthetic)"
            )
        chosen.append(_shards_of_origin(Path(config.synthetic), "synthetic"))
    validation = _shards_of_origin(real_dir / "validation", "real")
    check_unet_shape(validation.patch_shape, config.unet.filters)
    for shards in chosen:
        if shared := set(shards.subjects) & set(validation.subjects):
            raise DataError(f"{shards.folder} and {validation.folder} share the subjects {', '.join(sorted(shared))}")
        if shards.manifest.upper_percentile != validation.manifest.upper_percentile:
            raise DataError(
                f"{shards.folder} was scaled to percentile {shards.manifest.upper_percentile}, {validation.folder} to "
                f"{validation.manifest.upper_percentile}: take shards of one scaling"
            )
    return chosen, validation


def _shards_of_origin(folder: Path, origin: str) -> ShardSet:
    shards = ShardSet(folder)
    if shards.origin != origin:
        raise DataError(f"{folder}: holds {shards.origin} patches where {origin} ones belong; name another folder")
    return shards


def _run(config: TrainUnet, raw: dict[str, Any], world: World, program: str) -> None:
    run_dir = run_dir_of(config)
    sets, validation_set = distributed.together(world, lambda: open_shards(config))
    settings = resolve(
        raw,
        batch_size=config.unet.batch_size,
        batch_per_gpu=config.unet.batch_per_gpu,
        world_size=world.size,
        field="unet",
    )
    distributed.together(world, lambda: rundir.prepare(run_dir, "train_unet", config, {PLAYER: settings}))
    if rundir.is_finished(run_dir):
        if world.is_main:
            print(f"{run_dir}: finished already", flush=True)
        return
    engine = _engine(config, settings, world, program)
    state = checkpoint.load(run_dir, config.checkpoint, {PLAYER: engine}, world=world) or {"step": 0, "seconds": 0.0}
    log = RunLog(run_dir, is_main=world.is_main, resume_step=state["step"])
    training = _dataset(config, sets)
    _say_first_lines(log, config, run_dir, world, engine, training, start=state["step"])
    told = {"scaling": config.data.scaling, "upper_percentile": validation_set.manifest.upper_percentile}
    told |= {"patch_shape": list(validation_set.patch_shape), "config_hash": config_hash(config)}
    run = _Run(config, run_dir, world, engine, log, training, _dataset(config, validation_set), told)
    facts = run.drive(state)
    if world.is_main:
        rundir.finish(run_dir, facts)
    log.line(f"finished: best of {facts['steps']} steps is {facts['best_checkpoint']}, validation Dice "
             f"{facts['validation_dice']:.3f}, {facts['hours'] * 60:.1f} min; {run_dir}")  # fmt: skip
    log.close()
    distributed.barrier()


def _dataset(config: TrainUnet, sets: list[ShardSet] | ShardSet) -> PatchDataset:
    """Images in 0..255. The control's exchange of labels touches the training patches (a list) alone."""
    is_shuffled = config.data.shuffle_labels and isinstance(sets, list)
    return PatchDataset(
        sets,
        scaling=config.data.scaling,
        label_threshold=config.data.label_threshold,
        intensity="byte",
        shuffle_labels_seed=config.unet.seed if is_shuffled else None,
    )


def _engine(config: TrainUnet, settings: dict[str, Any], world: World, program: str) -> Engine:
    unet = Unet(config.unet.filters, config.unet.dropout)
    start_unet(unet, config.unet.seed)
    return build(
        PLAYER,
        unet,
        learning_rate=config.unet.learning_rate,
        betas=config.unet.betas,
        settings=settings,
        world=world,
        agreeing_command=f"{program} --deepspeed_config ds_bf16.json unet.precision=bf16",
    )


def unet_step(engine: Engine, batch_NCXYZ: Tensor) -> Tensor:
    """One optimizer step on this rank's share of the batch; returns its loss, on the device.

    With batch_per_gpu below the share, Dice and BatchNorm see one micro-batch at a time, as any accumulation does.
    """
    losses = []
    for part_NCXYZ in batch_NCXYZ.to(engine.deepspeed.device).chunk(engine.micro_batches):
        with phase("unet/forward"):
            loss = dice_loss(engine.module(part_NCXYZ[:, :1]), part_NCXYZ[:, 1:])
        with phase("unet/backward"):
            engine.backward(loss)
        with phase("unet/update"):
            engine.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean()


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout's noise is a function of the step, so a resumed run draws what the unbroken one would.

    Ranks draw apart: it is the one thing in which a run on two ranks differs from a run on one.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


@dataclass(frozen=True)
class _Run:
    """What the loop needs at hand."""

    config: TrainUnet
    run_dir: Path
    world: World
    engine: Engine
    log: RunLog
    training: PatchDataset
    validation: PatchDataset
    told: dict[str, Any]
    """What every checkpoint says of the data, for `segment`."""

    def drive(self, state: dict[str, Any]) -> dict[str, Any]:
        """Step, validate, keep the best, from `state` to the last step or the end of patience; what to tell of it."""
        unet, began = self.config.unet, time.perf_counter()
        done, stop = state["step"], unet.max_steps
        selection = Selection(**state.get("selection", {}))
        pending: list[Tensor] = []
        progress = _Progress(self.log, start=done, stop=stop)
        batches = self._batches(done)
        while done < stop and not selection.is_over(unet.patience):
            seed_dropout(unet.seed, done, self.world.rank)
            pending.append(unet_step(self.engine, next(batches)))
            done += 1
            if done % unet.log_every == 0 or done == stop:
                progress.tell(done, self._mean_loss(pending, done), self.engine)
                pending.clear()
            if done % unet.validate_every == 0 or done == stop:
                scores = validate(self.engine.module, self.validation, batch_size=unet.batch_size, world=self.world)
                self._finite(scores.loss, "validation loss", done)
                selection = selection.after(f"step_{done:08d}", scores)
                self._keep(done, scores, selection, state["seconds"] + time.perf_counter() - began)
                progress.pause_ended()
        return {
            "steps": done,
            "stopped_early": done < stop,
            "hours": (state["seconds"] + time.perf_counter() - began) / 3600,
            "best_checkpoint": selection.best_checkpoint,
            "validation_loss": selection.best_loss,
            "validation_dice": selection.best_dice,
            "source": self.config.data.source,
            "num_patches": len(self.training),
            "ranks": self.world.size,
            "device": self.world.device.type,
        }

    def _batches(self, start: int) -> Iterator[Tensor]:
        unet = self.config.unet
        return stream(
            self.training,
            batch_size=unet.batch_size,
            seed=unet.seed,
            start=start,
            stop=unet.max_steps,
            rank=self.world.rank,
            world_size=self.world.size,
            num_workers=unet.num_workers,
        )

    def _mean_loss(self, pending: list[Tensor], done: int) -> float:
        # Every rank has the loss of the whole batch already.
        return self._finite(torch.stack(pending).mean().item(), "loss", done)

    def _finite(self, value: float, what: str, done: int) -> float:
        if not np.isfinite(value):
            raise NumericError(
                f"{self.run_dir}: {what} not finite at step {done}; train with a lower unet.learning_rate or with "
                "unet.precision=fp32, in a new run directory"
            )
        return value

    def _keep(self, done: int, scores: Scores, selection: Selection, seconds: float) -> None:
        """Log the validation and save this step's checkpoint; the best one is never pruned."""
        self.log.scalars(done, {f"validation_{name}": value for name, value in asdict(scores).items()})
        if self.world.is_main:
            self.log.image(done, "validation", picture(self.engine.module, self.validation, self.world.device))
        is_best = selection.num_worse == 0
        self.log.line(f"step {done}/{self.config.unet.max_steps}  validation loss {scores.loss:+.4f}  Dice "
                      f"{scores.dice:.4f}{'  best so far' if is_best else ''}")  # fmt: skip
        state = self.told | {"step": done, "seconds": seconds, "selection": selection.to_json()}
        checkpoint.save(
            self.run_dir,
            done,
            {PLAYER: self.engine},
            state,
            keep_last=self.config.unet.keep_last,
            world=self.world,
            keep=[selection.best_checkpoint],
        )


class _Progress:
    """Scalars every few steps; lines with the measured step time and the predicted end, validations apart."""

    def __init__(self, log: RunLog, *, start: int, stop: int) -> None:
        self._log, self._stop, self._step = log, stop, start
        self._time, self._next_line = time.perf_counter(), 0.0

    def tell(self, done: int, loss: float, engine: Engine) -> None:
        now = time.perf_counter()
        step_s = (now - self._time) / max(1, done - self._step)
        self._step, self._time = done, now
        values = {"loss": loss, "step_ms": 1000 * step_s, "loss_scale": engine.loss_scale}
        self._log.scalars(done, values | {"skipped_total": float(engine.skipped_steps)})
        if now >= self._next_line:
            self._next_line = now + SECONDS_PER_LINE
            left_min = (self._stop - done) * step_s / 60
            self._log.line(
                f"step {done}/{self._stop}  loss {loss:+.4f}  {1000 * step_s:.0f} ms a step, {left_min:.1f} min left"
            )

    def pause_ended(self) -> None:
        """What came since the last `tell` is not the steps' time."""
        self._time = time.perf_counter()


def _say_first_lines(
    log: RunLog, config: TrainUnet, run_dir: Path, world: World, engine: Engine, training: PatchDataset, *, start: int
) -> None:
    source = config.data.source + (", labels shuffled against images" if config.data.shuffle_labels else "")
    log.line(f"run directory: {run_dir} (tensorboard --logdir {run_dir}/tensorboard)")
    log.line(
        f"U-Net {config.unet.filters} in {config.unet.precision} on {world.size} x {world.device.type}, "
        f"{sum(parameter.numel() for parameter in engine.module.parameters()):,} parameters; {len(training)} patches "
        f"({source}); {'resumed at step ' + str(start) if start else 'new run'}, {config.unet.max_steps} steps in all"
    )
