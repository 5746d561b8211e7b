"""What a build remembers between its runs, below <cohort_dir>/shards/.build, so that a killed one can be resumed.

    state.json                              the settings, input files and voxels that the shards come from
    <purpose>-<split>-shard-00000.h5.json   one finished shard: count, bytes, sha256

Readers of shards need none of it: they read the manifest.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.layouts import KINDS, CohortFiles
from data_prep.output import write_json
from data_prep.shard_plan import PlannedShard
from vesselgan.config.overrides import flat_values
from vesselgan.config.schema import PreparedData
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.console import differences
from vesselgan.core.errors import DataError, UsageError, reading
from vesselgan.formats.cohort import COHORT, Cohort
from vesselgan.formats.shards import ShardInfo
from vesselgan.formats.synthetic_volumes import origin_of

# May change between two runs: no byte of a shard depends on them, or a change shows in the subjects' names.
FREE_TO_CHANGE = {"prepare.quarantine", "prepare.repair", "prepare.max_clipped_vessel_share", "prepare.split.csv"}
FREE_TO_CHANGE |= {"prepare.pseudonymise", "prepare.key_file", "prepare.follow_links"}


@dataclass(frozen=True)
class BuildState:
    """What the shards of one cohort were built from."""

    name: str
    settings: dict[str, Any]
    inputs: dict[str, Any]
    """Subject -> kind -> [path or its pseudonym, bytes, time of change in ns]."""
    set_aside: list[str]
    contents: dict[str, list[str | None]]
    """Subject -> [split, sha256 of the image's voxels, of the label's, of the mask's]: what the shards come from."""


def settings_of(data: PreparedData) -> dict[str, Any]:
    """Dotted key -> value, below `data`, for all that the shards' bytes depend on; `origin` of synthetic heads."""
    flat = flat_values({"layout": asdict(data.layout), "prepare": asdict(data.prepare)})
    origin = {} if origin_of(data.root) == "real" else {"origin": "synthetic"}
    return {key: value for key, value in flat.items() if key not in FREE_TO_CHANGE} | origin


def inputs_of(cohort_files: CohortFiles, rename: Callable[[str], str]) -> dict[str, Any]:
    """`BuildState.inputs` of the files as they are now; paths go through `rename`, as ids did."""
    inputs = {}
    for files in cohort_files.subjects:
        paths = {kind: getattr(files, kind) for kind in KINDS if getattr(files, kind) is not None}
        inputs[files.subject] = {kind: [rename(os.path.realpath(p)), *_size_and_time(p)] for kind, p in paths.items()}
    return inputs


def _size_and_time(path: Path) -> list[int | None]:
    try:
        stat = path.stat()
    except OSError:  # a link that leads nowhere is a fault that the check names
        return [None, None]
    return [stat.st_size, stat.st_mtime_ns]


def read_state(data: PreparedData) -> BuildState | None:
    """The state of the build in data.cohort_dir; None where there is none yet.

    UsageError where the folder holds something else or a build with other settings, with the difference.
    """
    cohort_dir = Path(data.cohort_dir)
    path, remedy = _folder(cohort_dir) / "state.json", _remedy(cohort_dir)
    with reading(path, remedy):
        try:
            state = _parse(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            _check_not_foreign(cohort_dir, data.name)
            return None
    if state.name != data.name:
        raise UsageError(f"{cohort_dir}: holds the shards of cohort {state.name}, not {data.name}; {remedy}")
    if changed := differences(state.settings, settings_of(data)):
        shown = "; ".join(f"data.{change}" for change in changed)
        raise UsageError(f"{cohort_dir}: the shards were built with other settings ({shown}); {remedy}")
    return state


def write_state(data: PreparedData, state: BuildState) -> None:
    """Write state.json, before the first shard."""
    write_json(_folder(Path(data.cohort_dir)) / "state.json", asdict(state))


def contents_of(cohort: Cohort) -> dict[str, list[str | None]]:
    """`BuildState.contents` of a cohort."""
    return {name: [s.split, s.image_sha256, s.label_sha256, s.mask_sha256] for name, s in cohort.subjects.items()}


def check_unchanged(data: PreparedData, state: BuildState, cohort: Cohort) -> None:
    """DataError when the cohort is no longer the one that the shards were built from, with the difference."""
    old, new = state.contents, contents_of(cohort)
    changes = [f"{name} is new" for name in sorted(set(new) - set(old))]
    changes += [f"{name} is gone" for name in sorted(set(old) - set(new))]
    for name in sorted(set(old) & set(new)):
        (split, *digests), (new_split, *new_digests) = old[name], new[name]
        pairs = zip(KINDS, digests, new_digests, strict=True)
        changes += [f"the {kind} of {name} changed" for kind, before, after in pairs if before != after]
        if split != new_split:
            changes.append(f"{name} moved from {split} to {new_split}")
    if changes:
        remedy = _remedy(Path(data.cohort_dir))
        raise DataError(
            f"{data.cohort_dir}: the cohort changed since its shards were built: {'; '.join(changes)}; {remedy}"
        )


def shard_path(cohort_dir: Path, shard: PlannedShard) -> Path:
    return cohort_dir / "shards" / shard.name


def record_shard(cohort_dir: Path, shard: PlannedShard, info: ShardInfo) -> None:
    """Remember a finished shard."""
    write_json(_record_path(cohort_dir, shard), asdict(info))


def inspect_shard(cohort_dir: Path, shard: PlannedShard) -> ShardInfo | str | None:
    """The entry of a shard whose bytes are as written, None when it was never finished, else what is wrong."""
    path = shard_path(cohort_dir, shard)
    try:
        info = ShardInfo(**json.loads(_record_path(cohort_dir, shard).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not path.is_file() or info.file != path.name:
        return None
    if path.stat().st_size != info.bytes:
        return f"{path}: {path.stat().st_size} bytes, {info.bytes} were written"
    return info if sha256_of(path) == info.sha256 else f"{path}: its bytes changed (sha256 differs)"


def _parse(content: Any) -> BuildState:
    """TypeError or ValueError for whatever does not have the types of `BuildState`."""
    state = BuildState(**content)
    if not all(isinstance(value, dict) for value in (state.settings, state.inputs, state.contents)):
        raise ValueError("settings, inputs or contents are damaged")
    if not isinstance(state.set_aside, list) or any(len(entry) != 1 + len(KINDS) for entry in state.contents.values()):
        raise ValueError("set_aside or contents are damaged")
    return state


def _check_not_foreign(cohort_dir: Path, name: str) -> None:
    """UsageError for shards or a cohort.json that no build of this cohort made."""
    shards = cohort_dir / "shards"
    if shards.exists() and any(entry.name != ".build" for entry in shards.iterdir()):
        raise UsageError(f"{shards}: was not made by this program's build; {_remedy(cohort_dir)}")
    try:
        content = json.loads((cohort_dir / COHORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("name") != name:
        raise UsageError(f"{cohort_dir / COHORT}: belongs to something else than cohort {name}; {_remedy(cohort_dir)}")


def _remedy(cohort_dir: Path) -> str:
    return (
        f"to keep it, give this build a data.name or data.cohort_dir of its own; to build anew, remove "
        f"{cohort_dir / 'shards'} and {cohort_dir / COHORT}"
    )


def _folder(cohort_dir: Path) -> Path:
    return cohort_dir / "shards" / ".build"


def _record_path(cohort_dir: Path, shard: PlannedShard) -> Path:
    return _folder(cohort_dir) / f"{shard.name.replace('/', '-')}.json"
