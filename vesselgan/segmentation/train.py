"""Trains the U-Net on real patches, synthetic ones, or both; validates on real patches alone.

Every source gets the same `unet.max_steps` optimizer steps of `unet.batch_size` patches (the paper does not say how it
compared). Early stopping and the choice of the checkpoint see real validation patches; the test subjects have no
shards, so nothing can be tuned on them.
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
from vesselgan.config.deepspeed import resolve
from vesselgan.config.schema import TrainUnet
from vesselgan.core.errors import DataError, NumericError, UsageError
from vesselgan.data.patches import ShardDataset, stream
from vesselgan.data.position import Position, batches_before
from vesselgan.formats.cohort import shards_dir
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.losses.segmentation import LOSSES
from vesselgan.models.unet import Unet, check_unet_shape, init_unet_weights
from vesselgan.runtime import checkpoint, distributed
from vesselgan.runtime.distributed import World, run_on_rank0
from vesselgan.runtime.engine import Engine, build
from vesselgan.runtime.nonfinite import check_skipped_steps
from vesselgan.runtime.provenance import collect
from vesselgan.segmentation.training_provenance import learned_from
from vesselgan.segmentation.validation import Selection, validate, validation_image
from vesselgan.trainer.logger import RunLog
from vesselgan.trainer.progress import Meter, Progress
from vesselgan.trainer.setup import copy_to_node, train_in_session
from vesselgan.trainer.stopper import Stopper

# N batch, C channel (0 image, 1 vessel label), X Y Z voxels
BETAS = [0.9, 0.999]
"""Adam's default, as Hilbert 2020."""
PROGRAM = "deepspeed launch/train_unet.py"
NETWORK = "unet"


def train_unet(command: Command) -> None:
    """Train, or resume, the U-Net that `command` describes; a finished run says so and returns."""
    run_dir, precision = run_dir_of(command.config), command.config.unet.precision
    train_in_session(command, _run, run_dir=run_dir, program=PROGRAM, precision=precision, key="unet.precision")


def run_dir_of(config: TrainUnet) -> Path:
    """The run directory: as given, else named after the source and the configuration's hash."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path(config.work_dir) / "runs" / f"unet-{config.data.source}-{config_hash(config)}"


def open_shards(config: TrainUnet) -> tuple[list[ShardSet], ShardSet]:
    """(the sets to train on, the real validation set); raises UsageError or DataError for sets that do not fit."""
    sets = []
    if config.data.source in ("real", "both"):
        sets.append(_shards_of_origin(shards_dir(config.data.cohort_dir, "unet", "train"), "real"))
    if config.data.source in ("synthetic", "both"):
        if config.synthetic is None:
            raise UsageError(
                f"data.source={config.data.source} needs synthetic=DIR, a folder of generated shards "
                "(launch/generate.py writes them to RUN/synthetic)"
            )
        sets.append(_shards_of_origin(Path(config.synthetic), "synthetic"))
    validation = _shards_of_origin(shards_dir(config.data.cohort_dir, "unet", "validation"), "real")
    check_unet_shape(validation.patch_shape, config.unet.filters)
    for shards in sets:
        if shared := set(shards.subjects) & set(validation.subjects):
            raise DataError(f"{shards.folder} and {validation.folder} share the subjects {', '.join(sorted(shared))}")
        if shards.manifest.upper_percentile != validation.manifest.upper_percentile:
            raise DataError(
                f"{shards.folder} was scaled to percentile {shards.manifest.upper_percentile}, {validation.folder} to "
                f"{validation.manifest.upper_percentile}: take shards of one scaling"
            )
    return sets, validation


def _shards_of_origin(folder: Path, origin: str) -> ShardSet:
    shards = ShardSet(folder)
    if shards.origin != origin:
        raise DataError(f"{folder}: holds {shards.origin} patches where {origin} ones belong; name another folder")
    return shards


def _run(config: TrainUnet, raw: dict[str, Any], world: World, program: str, stopper: Stopper) -> None:
    run_dir, unet = run_dir_of(config), config.unet
    sets, validation_set = run_on_rank0(world, lambda: open_shards(config))
    settings = resolve(
        raw, batch_size=unet.batch_size, batch_per_gpu=unet.batch_per_gpu, world_size=world.size, field="unet"
    )
    inputs = {f"unet/{shards.origin} {i}": content_hash(shards.folder) for i, shards in enumerate(sets)}
    inputs["unet/validation"] = content_hash(validation_set.folder)
    engine_settings = {NETWORK: settings}
    changes = run_on_rank0(
        world,
        lambda: RunDir(run_dir).load_or_init(
            "train_unet", config, engine_settings, inputs=inputs, provenance=collect()
        ),
    )
    if RunDir(run_dir).is_finished(unet.max_steps, changes):
        if world.is_main:
            print(f"{run_dir}: finished already", flush=True)
        return
    lines = stopper.start_watching(run_dir, max_minutes=None, max_restarts=config.runtime.max_restarts)
    engine = _build_engine(config, settings, world, program)
    state = checkpoint.load(run_dir, config.checkpoint, {NETWORK: engine}, world=world) or {"step": 0, "seconds": 0.0}
    num_bytes, keep_last = checkpoint.expected_bytes([engine]), unet.keep_last
    # The best one stays beside the last ones.
    disk = run_on_rank0(world, lambda: checkpoint.check_disk(run_dir, num_bytes, keep_last=keep_last, num_kept=1))
    session = {"step": state["step"], "ranks": world.size, "inputs": inputs}
    run_on_rank0(world, lambda: RunDir(run_dir).record_session(config, engine_settings, changes, session, collect()))
    log = RunLog(run_dir, is_main=world.is_main, resume_step=state["step"])
    (validation_set, *sets), copied = copy_to_node([validation_set, *sets], config.data.local_copy_dir, world)
    training, validation = _dataset(config, sets), _dataset(config, validation_set)
    _log_run_summary(log, config, run_dir, world, engine, training, start=state["step"])
    for line in [disk, *lines, *copied, *(f"changed: {change}" for change in changes)]:
        log.line(line)
    data_state = _data_state(config, sets, validation_set)
    trainer = _Trainer(config, run_dir, world, engine, log, training, validation, data_state, stopper)
    facts = trainer.train_loop(state)
    if facts["is_finished"]:
        if world.is_main:
            RunDir(run_dir).mark_finished(facts)
        log.line(
            f"finished: best of {facts['steps']} steps is {facts['best_checkpoint']}, validation Dice "
            f"{facts['validation_dice']:.3f}, {facts['hours'] * 60:.1f} min; {run_dir}"
        )
    log.close()
    distributed.barrier()


def _data_state(config: TrainUnet, sets: list[ShardSet], validation_set: ShardSet) -> dict[str, Any]:
    """What every checkpoint holds of the data, for `segment`."""
    return {
        "scaling": config.data.scaling,
        "upper_percentile": validation_set.manifest.upper_percentile,
        "patch_shape": list(validation_set.patch_shape),
        "config_hash": config_hash(config),
        # The budget spent on the training patches, if one private GAN made all of them.
        "privacy": sets[0].manifest.extra.get("privacy") if len(sets) == 1 else None,
        "learned_from": learned_from(config.data.cohort_dir, sets, validation_set),
    }


def _dataset(config: TrainUnet, sets: list[ShardSet] | ShardSet) -> ShardDataset:
    """Images in 0..255. The control shuffles labels of the training patches (a list) alone."""
    is_shuffled = config.data.shuffle_labels and isinstance(sets, list)
    return ShardDataset(
        sets,
        scaling=config.data.scaling,
        label_threshold=config.data.label_threshold,
        intensity="byte",
        shuffle_labels_seed=config.unet.seed if is_shuffled else None,
        cache_bytes=int(config.data.cache_gib * 2**30),
    )


def _build_engine(config: TrainUnet, settings: dict[str, Any], world: World, program: str) -> Engine:
    unet = Unet(config.unet.filters, config.unet.dropout, network=config.unet.network)
    init_unet_weights(unet, config.unet.seed)
    return build(
        NETWORK,
        unet,
        learning_rate=config.unet.learning_rate,
        betas=BETAS,
        settings=settings,
        world=world,
        program=program,
        key="unet.precision",
    )


def unet_step(engine: Engine, batch_NCXYZ: Tensor, loss_name: str) -> dict[str, Tensor]:
    """One optimizer step on this rank's slice of the batch; returns its loss, on the device, nothing when skipped.

    With gradient accumulation, Dice and BatchNorm see one micro-batch at a time.
    """
    losses = []
    for patch_NCXYZ in batch_NCXYZ.to(engine.device).chunk(engine.micro_batches):
        with phase("unet/forward"):
            loss = LOSSES[loss_name](engine.module(patch_NCXYZ[:, :1]), patch_NCXYZ[:, 1:])
        with phase("unet/backward"):
            engine.backward(loss)
        with phase("unet/update"):
            is_applied = engine.step()
        losses.append(loss.detach())
    return {"loss/train": torch.stack(losses).mean()} if is_applied else {}


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout is a function of (seed, step, rank), so a resumed run draws what the unbroken one would.

    It is the only thing in which a run on two ranks differs from a run on one.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


@dataclass(frozen=True)
class _Trainer:
    """The loop and its components."""

    config: TrainUnet
    run_dir: Path
    world: World
    engine: Engine
    log: RunLog
    training: ShardDataset
    validation: ShardDataset
    data_state: dict[str, Any]
    stopper: Stopper

    def train_loop(self, state: dict[str, Any]) -> dict[str, Any]:
        """Train and validate from `state` to the end or to a request to stop; returns the facts of the run."""
        unet, start, started_at = self.config.unet, state["step"], time.perf_counter()
        selection, meter = Selection(**state.get("selection", {})), Meter(state.get("meter"))
        first_batch = self._first_batch(state)
        progress = Progress(self.log, start=start, stop=unet.max_steps, patches_per_step=unet.batch_size)
        batches = self._batches(start, first_batch)
        step, save_s, write_ms = start, state.get("save_s", 0.0), 0.0
        while step < unet.max_steps and not selection.is_over(unet.patience):
            seed_dropout(unet.seed, step, self.world.rank)
            meter.update(unet_step(self.engine, next(batches), unet.loss))
            step += 1
            check_skipped_steps(
                {NETWORK: self.engine},
                unet.max_skipped_steps,
                field="unet.max_skipped_steps",
                step=step,
                run_dir=self.run_dir,
                world=self.world,
            )
            is_last = step == unet.max_steps
            if step % unet.log_every == 0 or is_last:
                self._log(step, meter.reduce(self.world) | {"checkpoint/write_ms": write_ms}, progress)
            should_stop = self.stopper.should_stop(step_s=progress.step_s, save_s=save_s)
            is_validation_due = step % unet.validate_every == 0 or is_last
            paused_at = time.perf_counter()
            if is_validation_due:
                selection = self._validate(step, selection)
            if is_validation_due or should_stop:
                position = self._position_after(first_batch + step - start)
                timing = {"seconds": state["seconds"] + time.perf_counter() - started_at, "save_s": save_s}
                meters = {"meter": meter.to_json(self.world), "position": position}
                write_ms = self._save(step, timing | meters, selection)
                save_s = time.perf_counter() - paused_at
            progress.exclude(time.perf_counter() - paused_at)
            if should_stop and not is_last:
                self.log.line(self.stopper.write_requeue(step))
                break
        return self._facts(step, selection, state["seconds"] + time.perf_counter() - started_at)

    def _first_batch(self, state: dict[str, Any]) -> int:
        """Global batches used up when the session starts."""
        size, records = self.config.unet.batch_size, len(self.training)
        return batches_before(state, batch_size=size, num_records=records)

    def _position_after(self, batches: int) -> dict[str, int]:
        unet, records = self.config.unet, len(self.training)
        return Position.after(batches, seed=unet.seed, batch_size=unet.batch_size, num_records=records).to_json()

    def _batches(self, start: int, first_batch: int) -> Iterator[Tensor]:
        unet = self.config.unet
        return stream(
            self.training,
            batch_size=unet.batch_size,
            seed=unet.seed,
            start=first_batch,
            stop=first_batch + unet.max_steps - start,
            rank=self.world.rank,
            world_size=self.world.size,
            num_workers=unet.num_workers,
            augment=self.config.data.augment,
        )

    def _log(self, step: int, metrics: dict[str, float], progress: Progress) -> None:
        metrics[f"amp/{NETWORK}_loss_scale"] = self.engine.loss_scale
        metrics[f"amp/{NETWORK}_skipped_total"] = float(self.engine.skipped_steps)
        loss = metrics.get("loss/train")
        progress.log(step, metrics, "every step skipped" if loss is None else f"loss {loss:+.4f}")

    def _validate(self, step: int, selection: Selection) -> Selection:
        """Score the U-Net on the validation patches, log scores and an image, and update the selection."""
        scores = validate(self.engine.module, self.validation, batch_size=self.config.unet.batch_size, world=self.world)
        if not np.isfinite(scores.loss):
            raise NumericError(
                f"{self.run_dir}: validation loss not finite at step {step}; train with a lower unet.learning_rate or "
                "with unet.precision=fp32, in a new run directory"
            )
        self.log.scalars(step, {f"validation/{name}": value for name, value in asdict(scores).items()})
        if self.world.is_main:
            self.log.image(step, "validation", validation_image(self.engine.module, self.validation, self.world.device))
        selection = selection.after(checkpoint.name_of(step), scores)
        self.log.line(
            f"step {step}/{self.config.unet.max_steps}  validation loss {scores.loss:+.4f}  Dice {scores.dice:.4f}"
            f"{'  best so far' if selection.num_worse == 0 else ''}"
        )
        return selection

    def _save(self, step: int, state: dict[str, Any], selection: Selection) -> float:
        """Write a checkpoint; returns the milliseconds it took. The best one is never pruned."""
        self.log.flush()
        saved = checkpoint.save(
            self.run_dir,
            step,
            {NETWORK: self.engine},
            self.data_state | state | {"step": step, "selection": selection.to_json()},
            keep_last=self.config.unet.keep_last,
            world=self.world,
            keep=[selection.best_checkpoint] if selection.best_checkpoint else [],
        )
        return 1000 * saved.seconds

    def _facts(self, steps: int, selection: Selection, seconds: float) -> dict[str, Any]:
        is_over = selection.is_over(self.config.unet.patience)
        return {
            "is_finished": is_over or steps == self.config.unet.max_steps,
            "steps": steps,
            "skipped_steps": self.engine.skipped_steps,
            "stopped_early": steps < self.config.unet.max_steps,
            "hours": seconds / 3600,
            "best_checkpoint": selection.best_checkpoint,
            "validation_loss": selection.best_loss,
            "validation_dice": selection.best_dice,
            "source": self.config.data.source,
            "num_patches": len(self.training),
            "ranks": self.world.size,
            "device": self.world.device.type,
        }


def _log_run_summary(
    log: RunLog, config: TrainUnet, run_dir: Path, world: World, engine: Engine, training: ShardDataset, *, start: int
) -> None:
    source = config.data.source + (", labels shuffled against images" if config.data.shuffle_labels else "")
    log.line(f"run directory: {run_dir} (tensorboard --logdir {run_dir}/tensorboard)")
    log.line(
        f"{config.unet.network} U-Net {config.unet.filters} in {config.unet.precision} on {world.size} x "
        f"{world.device.type}, {sum(parameter.numel() for parameter in engine.module.parameters()):,} parameters; "
        f"{len(training)} patches ({source}); {'resumed at step ' + str(start) if start else 'new run'}, "
        f"{config.unet.max_steps} steps in all"
    )
