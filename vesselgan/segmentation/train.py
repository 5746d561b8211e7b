"""Trains the U-Net on real patches, synthetic ones, or both; validates on real patches alone.

Every source gets the same `unet.max_steps` optimizer steps of `unet.batch_size` patches (the paper does not say how it
compared). Early stopping and the choice of the checkpoint see real validation patches; the test subjects have no
shards, so nothing can be tuned on them.
"""

from pathlib import Path
from typing import Any

from vesselgan.config.compose import Command, config_hash
from vesselgan.config.schema import TrainUnet, UnetRun
from vesselgan.core.errors import DataError, UsageError
from vesselgan.data.patches import ShardDataset
from vesselgan.formats.cohort import shards_dir
from vesselgan.formats.run_dir import EVENTS, RunDir
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.models.unet import Unet, check_unet_shape, init_unet_weights
from vesselgan.runtime.distributed import run_on_rank0
from vesselgan.runtime.engine import Engine, build
from vesselgan.segmentation.unet_trainer import batches_of, build_trainer, training_data
from vesselgan.segmentation.validation import Validation
from vesselgan.trainer.batch_plan import BatchPlan
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session, run_in_session

BETAS = [0.9, 0.999]
"""Adam's default, as Hilbert 2020."""
PROGRAM = "vesselgan train-unet"
NETWORK = "unet"


def train_unet(command: Command) -> RunDir:
    """Train, or resume, the U-Net that `command` describes; a finished run says so and returns."""
    run_dir, precision = run_dir_of(command.config), command.config.unet.precision
    run_in_session(command, _run, run_dir=run_dir, program=PROGRAM, precision=precision, key="unet.precision")
    return RunDir(run_dir)


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
                "(`vesselgan generate` writes them to RUN/synthetic, build_shards those of synthetic heads)"
            )
        sets.append(_shards_of_origin(Path(config.synthetic), "synthetic"))
    validation = _shards_of_origin(shards_dir(config.data.cohort_dir, "unet", "validation"), "real")
    check_unet_shape(validation.patch_shape, config.unet.filters)
    for shards in sets:
        if shared := shards.patients() & validation.patients():
            raise DataError(f"{shards.folder} and {validation.folder} share the patients {', '.join(sorted(shared))}")
        if shards.manifest.percentiles != validation.manifest.percentiles:
            raise DataError(
                f"{shards.folder} was scaled to the percentiles {shards.manifest.percentiles}, {validation.folder} to "
                f"{validation.manifest.percentiles}: take shards of one scaling"
            )
        _check_labels(shards, config.data.label_threshold)
    return sets, validation


def _check_labels(shards: ShardSet, threshold: float | None) -> None:
    """Raises DataError for labels that teach nothing: no patch shows both vessel and background."""
    if any(0 < shards.label(i, threshold).mean() < 1 for i in range(len(shards))):
        return
    remedy = "make the shards again from a cohort with vessel labels"
    if shards.origin == "synthetic":
        cut = shards.label_threshold if threshold is None else threshold
        where = f"name=labels labels.synthetic={shards.folder} out={shards.folder}-labels.json"
        remedy = (
            f"the label threshold is {cut}: `vesselgan evaluate evaluate=label_threshold {where}` looks for one for "
            "data.label_threshold; where it finds none that is like the training labels, train the generator longer"
        )
    raise DataError(f"{shards.folder}: no patch has vessel and background, so a U-Net learns nothing; {remedy}")


def _shards_of_origin(folder: Path, origin: str) -> ShardSet:
    shards = ShardSet(folder)
    if shards.origin != origin:
        raise DataError(f"{folder}: holds {shards.origin} patches where {origin} ones belong; name another folder")
    return shards


def _run(session: Session) -> None:
    config, world, unet = session.config, session.world, session.config.unet
    sets, validation_set = run_on_rank0(world, lambda: open_shards(config))
    batch = BatchPlan.of(unet.batch_size, unet.batch_per_gpu, ranks=world.size, group="unet")
    settings = {NETWORK: batch.resolve(session.deepspeed_json)}
    engine = _build_engine(session, settings[NETWORK])
    inputs = {f"unet/{shards.origin} {i}": content_hash(shards.folder) for i, shards in enumerate(sets)}
    inputs["unet/validation"] = content_hash(validation_set.folder)
    if not session.claim("train_unet", settings, inputs, unet.max_steps):
        return
    schedule = schedule_of(unet, sum(map(len, sets)))
    session.restore({NETWORK: engine}, schedule.resumed_from)
    validation_set, *sets = session.copy_to_node([validation_set, *sets])
    training = _dataset(config, sets)
    schedule = schedule.resumed_from(session.state)
    validation = Validation(session, schedule, engine.module, _dataset(config, validation_set))
    batches = batches_of(session, schedule, batch, training)
    data = training_data(config, sets, validation_set)
    trainer = build_trainer(session, schedule, engine, batches, validation, data)
    session.begin([*_summary_lines(session, schedule, engine, training), trainer.checkpointer.check_disk()])
    steps = trainer.train()
    if steps == schedule.stop or validation.is_over:
        facts = _facts(session, engine, steps) | validation.facts() | {"num_patches": len(training)}
        line = f"best of {steps} steps is {facts['best_checkpoint']}, validation Dice {facts['validation_dice']:.3f}"
        session.finish(facts, f"{line}, {facts['hours'] * 60:.1f} min")
    session.close()


def schedule_of(unet: UnetRun, num_patches: int) -> Schedule:
    """The U-Net's steps over a training set of `num_patches`; every source gets as many."""
    return Schedule(
        seed=unet.seed,
        batch_size=unet.batch_size,
        num_patches=num_patches,
        batches_per_step=1,
        epochs=None,
        max_steps=unet.max_steps,
    )


def _build_engine(session: Session, settings: dict[str, Any]) -> Engine:
    unet = session.config.unet
    network = Unet(unet.filters, unet.dropout, network=unet.network)
    init_unet_weights(network, unet.seed)
    rate = unet.learning_rate
    return build(NETWORK, network, learning_rate=rate, betas=BETAS, settings=settings, world=session.world)


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


def _facts(session: Session, engine: Engine, steps: int) -> dict[str, Any]:
    config = session.config
    return {
        "steps": steps,
        "skipped_steps": engine.skipped_steps,
        "stopped_early": steps < config.unet.max_steps,
        "hours": session.pace.seconds / 3600,
        "source": config.data.source,
        "ranks": session.world.size,
        "device": session.world.device.type,
    }


def _summary_lines(session: Session, schedule: Schedule, engine: Engine, training: ShardDataset) -> list[str]:
    config, world = session.config, session.world
    source = config.data.source + (", labels shuffled against images" if config.data.shuffle_labels else "")
    origin = f"resumed at step {schedule.start}" if schedule.start else "new run"
    return [
        f"run directory: {session.run_dir} (tensorboard --logdir {session.run_dir / EVENTS})",
        f"{config.unet.network} U-Net {config.unet.filters} in {config.unet.precision} on {world.size} x "
        f"{world.device.type}, {sum(parameter.numel() for parameter in engine.module.parameters()):,} parameters; "
        f"{len(training)} patches ({source}); {origin}, {schedule.stop} steps in all",
    ]
