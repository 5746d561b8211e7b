"""The release counter of a private run, beside its checkpoints: resuming from an older one must not hide a release.

    releases.json    {"num_releases": the most of any session, "num_at_change": their number at the last change of
                      settings, "conditions": what else determines the releases, as of `conditions_of`}

A release repeated from the same weights with the same settings has the same bytes and spends nothing, so a killed run
can resume. With other settings it would be a second release of the same batch under the same noise, and the difference
of both has no noise. So no setting may change before `num_releases` is reached again, not even the number of ranks or
threads, which changes the rounding of sums; after it, everything that the accountant allows.
"""

import importlib.metadata
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vesselgan.core.atomic_io import describe, write_text
from vesselgan.core.errors import CheckpointError, PrivacyError, ResourceError
from vesselgan.core.version import __version__
from vesselgan.formats.run_changes import Change
from vesselgan.privacy.accountant import Mechanism
from vesselgan.runtime.distributed import World
from vesselgan.runtime.provenance import device_name

FILE = "releases.json"
# Settings of the length of a run. What they change of its releases is among the conditions.
LENGTH = {"train.epochs", "train.max_steps", "train.max_skipped_steps", "variant.dp.target_epsilon"}
PACKAGES = ("torch", "numpy", "opacus", "deepspeed")


@dataclass
class ReleaseCounter:
    """Releases of a run, independent of its newest checkpoint."""

    num_releases: int = 0
    num_at_change: int = 0
    conditions: dict[str, Any] = field(default_factory=dict)

    def advance(self, path: Path, releases: int) -> None:
        """Count up to `releases`, durable on return; never counts down."""
        if releases > self.num_releases:
            self.num_releases = releases
            self.write(path)

    def write(self, path: Path) -> None:
        try:
            write_text(path, json.dumps(asdict(self)) + "\n")
        except OSError as error:
            raise ResourceError(
                f"{path}: {describe(error)}, so the next releases could not be counted; make room, then "
                "resume with the same command"
            ) from error


def conditions_of(world: World, mechanism: Mechanism, decay_steps: int | None) -> dict[str, Any]:
    """What determines releases beside the settings: what rounds their sums, and what follows from the run's length.

    decay_steps: private steps in which the learning rate falls; None: it does not.
    """
    packages = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return {
        "ranks": f"{world.size} x {device_name(world.device)}",
        "threads": torch.get_num_threads() if world.device.type == "cpu" else None,
        "versions": ", ".join([f"vesselgan {__version__}", *packages]),
        "noise_multiplier": mechanism.noise_multiplier,
        "sample_rate": mechanism.sample_rate,
        "clip_norm": mechanism.clip_norm,
        "decay_steps": decay_steps,
    }


def resume(path: Path, releases: int, changes: list[Change], conditions: dict[str, Any]) -> ReleaseCounter:
    """The counter of a run that resumes after `releases` releases with `changes` of its settings.

    PrivacyError if counted releases would be repeated with other settings; CheckpointError if the counter is lost.
    """
    counter = _read(path)
    counted = counter.num_releases
    if releases > counted:
        raise CheckpointError(
            f"{path}: counts {counted} releases, the critic has made {releases}; put the file back, or start a "
            "new run directory: an epsilon for these weights might not be true"
        )
    altered = [str(change) for change in changes if changes_releases(change)]
    before = counter.conditions
    altered += [f"{key}: {before.get(key)} -> {now}" for key, now in conditions.items() if before.get(key) != now]
    if releases < counted and (altered or releases < counter.num_at_change):
        reason = "; ".join(altered) or f"settings or conditions changed after release {counter.num_at_change}"
        raise PrivacyError(
            f"{path}: {counted} releases were made, the checkpoint follows number {releases}, and those after it "
            f"would be made again otherwise ({reason}), under the same noise and uncounted. Resume unchanged "
            f"until release {counted} and change there, or start a new run directory"
        )
    counter = ReleaseCounter(counted, releases if altered else counter.num_at_change, conditions)
    counter.write(path)
    return counter


def changes_releases(change: Change) -> bool:
    """Whether the released bytes may change; DeepSpeed settings, free elsewhere, change the generator's rounding."""
    return change.key not in LENGTH and (not change.is_free or change.key.startswith("deepspeed."))


def _read(path: Path) -> ReleaseCounter:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        conditions = dict(content.get("conditions", {}))
        return ReleaseCounter(int(content["num_releases"]), int(content["num_at_change"]), conditions)
    except FileNotFoundError:
        return ReleaseCounter()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}); put it back, or start a new run directory: no "
            "other file counts how often this run's data were used"
        ) from error
