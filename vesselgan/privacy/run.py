"""The private network of a run, a GAN's critic or a flow: its batches, engine, accountant and secret key."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vesselgan.config.schema import Dp, TrainGan, Variant
from vesselgan.core.atomic_io import write_private
from vesselgan.core.errors import CheckpointError
from vesselgan.data.patches import ShardDataset, read_batches
from vesselgan.data.positions import Places
from vesselgan.formats.checkpoint_folder import CHECKPOINTS
from vesselgan.formats.shards import ShardSet
from vesselgan.privacy import releases
from vesselgan.privacy.accountant import Mechanism, PatientCounts, check_same_history, plan_mechanism, summary_lines
from vesselgan.privacy.engine import PrivateEngine, build_private
from vesselgan.privacy.poisson import PoissonSampler, patches_of_patients, units_of, without_patient
from vesselgan.privacy.step import PoissonBatch
from vesselgan.runtime.distributed import World, run_on_rank0
from vesselgan.trainer.checkpointer import CheckpointPart
from vesselgan.trainer.logger import Interval
from vesselgan.trainer.session import Session

KEY_FILE = "noise_key"
KEY_BITS = 128


@dataclass
class PrivateRun(CheckpointPart):
    """The accountant, key and sampling of a private run."""

    dp: Dp
    network: str
    """Which one sees patches: `critic`, or a flow's `generator`."""
    mechanism: Mechanism
    steps: int
    """Private steps of the whole run."""
    requested_steps: int
    """The same without dp.target_epsilon, which may end the run sooner."""
    units: list[list[int]]
    """The patches of each unit, by index."""
    key: int | None
    """Seed of sampling and noise; a secret one is null until `load_or_init`."""
    num_patches: int
    n_critic: int
    are_patients_known: bool
    """Otherwise every subject counts as a patient."""
    counter: releases.ReleaseCounter = field(default_factory=releases.ReleaseCounter)
    _epoch: int = 0

    @property
    def generator_steps(self) -> int:
        """Generator steps of the whole run."""
        return self.steps // self.n_critic

    def engine(self, module: nn.Module, variant: Variant, world: World) -> PrivateEngine:
        rates = {"critic": variant.learning_rate_critic, "generator": variant.learning_rate_generator}
        return build_private(
            self.network,
            module,
            learning_rate=rates[self.network],
            betas=variant.betas,
            noise_multiplier=self.mechanism.noise_multiplier,
            clip_norm=self.mechanism.clip_norm,
            expected_batch=self.mechanism.batch_size,
            weight_clip=self.dp.weight_clip,
            world=world,
        )

    def batches(
        self,
        dataset: ShardDataset,
        positions: range,
        config: TrainGan,
        world: World,
        places: Places | None = None,
    ) -> Iterator[PoissonBatch]:
        """This rank's slices of the Poisson batches at `positions`; places: of all patches, for a flow."""
        assert self.key is not None
        sampler = PoissonSampler(
            self.units,
            sample_rate=self.mechanism.sample_rate,
            key=self.key,
            positions=positions,
            rank=world.rank,
            world_size=world.size,
            augment=config.data.augment,
        )
        patches = read_batches(dataset, sampler, config.train.num_workers)
        return (
            PoissonBatch(indices, real, None if places is None else places.of(indices))
            for (indices, _), real in zip(sampler, patches, strict=True)
        )

    def lines(self) -> list[str]:
        """Lines on what the whole run will spend and how its key is stored."""
        lines = summary_lines(self.mechanism, self.steps)
        if not self.are_patients_known:
            lines.append("privacy: the shards name no patients, so `per patient` means per subject's id")
        if self.steps < self.requested_steps:
            lines.append(
                f"privacy: variant.dp.target_epsilon={self.dp.target_epsilon:g} ends the run after {self.steps:,} of "
                f"{self.requested_steps:,} private steps"
            )
        if self.dp.noise_seed is None:
            return [
                *lines,
                f"privacy: sampling and noise come from a secret key, {KEY_FILE} in the run directory: never share "
                "it, train in one copy of the directory alone, delete it when the run is over",
            ]
        return [
            *lines,
            "privacy: sampling and noise are drawn from variant.dp.noise_seed, to be repeatable: whoever knows it can "
            "take the noise off again, so no epsilon holds against him",
        ]

    def load_or_init(self, session: Session, state: dict[str, Any], engine: PrivateEngine) -> None:
        """Load or draw the key and check the accountant. A collective call.

        CheckpointError unless the restored accountant is this run's and has counted every private step;
        PrivacyError if the session's changes of settings would repeat releases otherwise.
        """
        self._session, self._engine = session, engine
        if state["step"]:
            check_same_history(state, self._accountant())
        run_dir, world = session.run_dir, session.world
        path, changes = run_dir / releases.FILE, session.changes
        decay_steps = self.steps if session.config.variant.final_learning_rate < 1 else None
        conditions = releases.conditions_of(world, self.mechanism, decay_steps)
        self.counter = run_on_rank0(world, lambda: releases.resume(path, engine.num_releases, changes, conditions))
        if self.key is None:
            self.key = run_on_rank0(world, lambda: _secret_key(run_dir))
        engine.key = self.key
        self._epoch = self._epoch_now()

    def after_step(self, step: int) -> None:
        """Count the releases so far, before anything is logged of them. A collective call."""
        path = self._session.run_dir / releases.FILE
        run_on_rank0(self._session.world, lambda: self.counter.advance(path, self._engine.num_releases))

    def metrics(self, interval: Interval) -> dict[str, float]:
        """Epsilon; logs a line of both accountants at the first call after each epoch."""
        epoch, steps = self._epoch_now(), self._engine.num_releases
        if self._session.log.is_main and epoch > self._epoch:
            self._session.log.line(self.spent_line(steps))
        self._epoch = epoch
        return {"dp/epsilon": self.mechanism.epsilon(self.mechanism.unit, steps)}

    def state(self) -> dict[str, Any]:
        """The budget spent so far, for checkpoints and the facts of a finished run."""
        return {"privacy": self._accountant()}

    def _accountant(self) -> dict[str, Any]:
        return self.mechanism.to_json(self._engine.num_releases) | {"is_key_secret": self.dp.noise_seed is None}

    def _epoch_now(self) -> int:
        return self._engine.num_releases * self.mechanism.batch_size // self.num_patches

    def spent_line(self, steps: int) -> str:
        """One line on what `steps` private steps have spent, by both accountants."""
        unit = self.mechanism.unit
        prv = self.mechanism.epsilon_prv(steps)
        prv_text = "" if prv is None else f", PRV {prv:.4g}"
        epsilon = self.mechanism.epsilon(unit, steps)
        return (
            f"privacy: epsilon {epsilon:.4g} per {unit} at delta {self.mechanism.delta:.3g} (RDP{prv_text}) after "
            f"{steps:,} private steps"
        )


def plan_private_run(config: TrainGan, shards: ShardSet, generator_steps: int) -> PrivateRun | None:
    """The private run of a private variant, before any network is built; None for other variants."""
    dp = config.variant.dp
    if dp is None:
        return None
    if config.init_from is not None:
        raise CheckpointError(
            f"init_from={config.init_from} with variant.dp: what those weights have learned is not "
            "in this run's accountant; start the private run from its seed"
        )
    units = units_of(shards, dp.unit)
    sizes = [len(patches) for patches in patches_of_patients(shards).values()]
    patients, batch_size = PatientCounts(len(shards), len(sizes), max(sizes)), config.train.batch_size
    mechanism, steps = plan_mechanism(config.variant, patients, batch_size=batch_size, generator_steps=generator_steps)
    n_critic = config.variant.n_critic
    return PrivateRun(
        dp,
        "critic" if config.variant.flow is None else "generator",
        mechanism,
        steps,
        requested_steps=generator_steps * n_critic,
        units=units,
        key=dp.noise_seed,
        num_patches=len(shards),
        n_critic=n_critic,
        are_patients_known=not without_patient(shards),
    )


def _secret_key(run_dir: Path) -> int:
    """The run's key, drawn for a new run; CheckpointError if it is damaged, or lost after the first checkpoint."""
    path = run_dir / KEY_FILE
    has_begun = any((run_dir / CHECKPOINTS).glob("step_*"))
    if not path.is_file() and not has_begun:
        write_private(path, f"{secrets.randbits(KEY_BITS):0{KEY_BITS // 4}x}\n")
    text = path.read_text(errors="replace").strip() if path.is_file() else None
    if text is None or not re.fullmatch(f"[0-9a-f]{{{KEY_BITS // 4}}}", text):
        problem = "lost" if text is None else f"holds no key of {KEY_BITS // 4} hexadecimal digits"
        remedy = "put it back, or start a new run directory" if has_begun else "remove it, and a new one is drawn"
        raise CheckpointError(
            f"{path}: {problem}, so the run cannot continue with the noise and sampling of its accountant; {remedy}"
        )
    return int(text, 16)
