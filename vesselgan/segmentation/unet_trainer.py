"""The U-Net's training: its step, its trainer's parts, and what each of them needs.

N batch (this rank's slice), C channel (0 image, 1 vessel label), X Y Z voxels
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function as phase

from vesselgan.config.schema import TrainUnet
from vesselgan.data.patches import ShardDataset, stream
from vesselgan.formats.shards import ShardSet
from vesselgan.losses.segmentation import LOSSES
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.nonfinite import SkipLimit
from vesselgan.runtime.timing import Scalars
from vesselgan.segmentation.training_provenance import learned_from, learned_from_preprocessed
from vesselgan.segmentation.validation import Validation
from vesselgan.trainer.batch_plan import BatchPlan
from vesselgan.trainer.checkpointer import Checkpointer, FixedState
from vesselgan.trainer.logger import Logger, loss_scales
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session
from vesselgan.trainer.trainer import Steps, Trainer


def training_data(config: TrainUnet, sets: list[ShardSet], validation_set: ShardSet) -> FixedState:
    """What `segment` must know of the data."""
    content = {
        "scaling": config.data.scaling,
        "percentiles": validation_set.manifest.percentiles,
        "patch_shape": list(validation_set.patch_shape),
        "spacing_mm": list(validation_set.spacing_mm),
        "is_preprocessed": learned_from_preprocessed(config.data.cohort_dir),
        # The budget spent on the training patches, if one private GAN made all of them.
        "privacy": sets[0].manifest.extra.get("privacy") if len(sets) == 1 else None,
        "learned_from": learned_from(config.data.cohort_dir, sets, validation_set),
    }
    return FixedState(content)


def batches_of(session: Session, schedule: Schedule, batch: BatchPlan, training: ShardDataset) -> Iterator[Tensor]:
    unet = session.config.unet
    return stream(
        training,
        batch_size=batch.total,
        seed=unet.seed,
        start=schedule.batches.start,
        stop=schedule.batches.stop,
        of_rank=batch.slice_of(session.world.rank),
        num_workers=unet.num_workers,
        augment=session.config.data.augment,
    )


def build_trainer(
    session: Session,
    schedule: Schedule,
    engine: Engine,
    batches: Iterator[Tensor],
    validation: Validation,
    data: FixedState,
) -> Trainer:
    unet, engines = session.config.unet, {engine.name: engine}
    logger = Logger(session, schedule, every=unet.log_every, summary=["loss/train"], sources=[loss_scales(engines)])
    parts = [data, logger, validation]
    checkpointer = Checkpointer(session, schedule, engines, parts, every=unet.validate_every, keep_last=unet.keep_last)
    return Trainer(
        session,
        schedule,
        train(session, schedule, engine, batches, validation),
        SkipLimit(engines, unet.max_skipped_steps, "unet.max_skipped_steps", session.run_dir, session.world),
        logger,
        checkpointer,
        observers=[validation],
    )


def train(
    session: Session, schedule: Schedule, engine: Engine, batches: Iterator[Tensor], validation: Validation
) -> Steps:
    """The algorithm: yields (steps done, their metrics) after every step, until the validation loss stops falling."""
    unet = session.config.unet
    for step in schedule.steps:
        if validation.is_over:
            return
        seed_dropout(unet.seed, step, session.world.rank)
        yield step + 1, [unet_step(engine, next(batches), unet.loss)]


def unet_step(engine: Engine, batch_NCXYZ: Tensor, loss_name: str) -> Scalars:
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
