"""The releases of a private run, counted beside its checkpoints: going back to an older one must not hide any.

    releases.json    {"made": the most noisy sums that any session told, "since": how many when what they are made
                      with was last changed, "on": the ranks that make them}

A release made again from the same weights with the same settings has the same bytes and spends nothing: so a killed
run is taken up. Made with others it would be a second one, of the same batch and under the same noise, which whoever
sees both can take away. So below the mark nothing may change, not even the number of ranks, whose sums are rounded
otherwise; on the mark everything that the accountant allows.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vesselgan.core.atomic_io import describe, write_text
from vesselgan.core.errors import CheckpointError, PrivacyError, ResourceError
from vesselgan.formats.run_dir import Change
from vesselgan.runtime.distributed import World
from vesselgan.runtime.provenance import device_name

FILE = "releases.json"
# Settings that say when a run ends, not what its releases are.
LENGTH = {"train.epochs", "train.max_steps", "train.max_skipped_steps", "variant.dp.target_epsilon"}


@dataclass
class ReleaseCounter:
    """How far a run has come, whatever its newest checkpoint says."""

    made: int = 0
    since: int = 0
    on: str = ""

    def advance(self, path: Path, releases: int) -> None:
        """Durable on return, so that nothing is told of a release that is not counted; never goes back."""
        if releases > self.made:
            self.made = releases
            self.write(path)

    def write(self, path: Path) -> None:
        try:
            write_text(path, json.dumps(asdict(self)) + "\n")
        except OSError as error:
            raise ResourceError(
                f"{path}: {describe(error)}, so the next releases could not be counted; make room, then go on with the "
                "same command"
            ) from error


def place_of(world: World) -> str:
    """What rounds the sums."""
    return f"{world.size} x {device_name(world.device)}"


def resume(path: Path, releases: int, changes: list[Change], on: str) -> ReleaseCounter:
    """The mark of a run that goes on after so many `releases` with these `changes`.

    PrivacyError where releases would be made again otherwise than they were; CheckpointError where the mark is lost.
    """
    mark = _read(path)
    if releases > mark.made:
        raise CheckpointError(
            f"{path}: counts {mark.made} releases, the critic has made {releases}; put the file back, or start a new "
            "run directory: an epsilon for these weights might not be true"
        )
    altered = [str(change) for change in changes if alters(change)]
    if mark.on not in ("", on):
        altered.append(f"ranks: {mark.on} -> {on}")
    if releases < mark.made and (altered or releases < mark.since):
        what = "; ".join(altered) or f"settings or ranks changed after release {mark.since}"
        raise PrivacyError(
            f"{path}: {mark.made} releases were made, the checkpoint follows number {releases}, and those after it "
            f"would be made again otherwise ({what}), under the same noise and uncounted. Go on unchanged "
            f"until release {mark.made} and change there, or start a new run directory"
        )
    mark = ReleaseCounter(mark.made, releases if altered else mark.since, on)
    mark.write(path)
    return mark


def alters(change: Change) -> bool:
    """Whether other bytes may be released; the mechanics that are free elsewhere round the generator otherwise."""
    return change.key not in LENGTH and (not change.is_free or change.key.startswith("deepspeed."))


def _read(path: Path) -> ReleaseCounter:
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        return ReleaseCounter(int(told["made"]), int(told["since"]), str(told["on"]))
    except FileNotFoundError:
        return ReleaseCounter()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}); put it back, or start a new run directory: how often "
            "this run's data were used is told nowhere else"
        ) from error
