"""What a build remembers between its starts, below <cohort_dir>/shards/.build: so that a killed one is taken up again.

    state.json                              the settings, input files and voxels that the shards come from
    <purpose>-<split>-shard-00000.h5.json   one finished shard: count, bytes, sha256

Readers of shards need none of it: for them the manifest is the document.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.layouts import KINDS, CohortFiles
from data_prep.shard_plan import PlannedShard
from vesselgan.config.schema import PreparedData
from vesselgan.core.atomic_io import sha256_of, write_text
from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.formats.cohort import COHORT, Cohort, read_cohort
from vesselgan.formats.shards import ShardInfo

# What may change from one start to the next without changing a byte of a shard, and what shows in the subjects' names.
FREE_TO_CHANGE = {"prepare.quarantine", "prepare.repair", "prepare.max_clipped_vessel_share", "prepare.split.csv"}
FREE_TO_CHANGE |= {"prepare.pseudonymise", "prepare.key_file"}


@dataclass(frozen=True)
class State:
    """One build, whoever continues it."""

    name: str
    settings: dict[str, Any]
    inputs: dict[str, Any]
    """Subject -> kind -> [path or its pseudonym, bytes, time of change in ns]: what need not be checked again."""
    set_aside: list[str]
    contents: dict[str, list[str | None]]
    """Subject -> [split, sha256 of the image's voxels, of the label's]: what the shards were cut from."""


def settings_of(data: PreparedData) -> dict[str, Any]:
    """Dotted key -> value, below `data`, for every setting that the shards' bytes depend on."""
    flat = {**_flat(asdict(data.layout), "layout."), **_flat(asdict(data.prepare), "prepare.")}
    return {key: value for key, value in flat.items() if key not in FREE_TO_CHANGE}


def inputs_of(found: CohortFiles, rename: Callable[[str], str]) -> dict[str, Any]:
    """The cohort's files as they lie there now; paths go through `rename`, as ids did."""
    inputs = {}
    for files in found.subjects:
        paths = {kind: getattr(files, kind) for kind in KINDS if getattr(files, kind) is not None}
        inputs[files.subject] = {kind: [rename(os.path.realpath(path)), *_seen(path)] for kind, path in paths.items()}
    return inputs


def _seen(path: Path) -> list[int | None]:
    """Bytes and time of change; None for a link that leads nowhere, which the check names."""
    try:
        stat = path.stat()
    except OSError:
        return [None, None]
    return [stat.st_size, stat.st_mtime_ns]


def read(data: PreparedData) -> State | None:
    """The state of the build in data.cohort_dir; None where there is none yet.

    UsageError where the folder holds something else or a build with other settings, with the difference.
    """
    cohort_dir = Path(data.cohort_dir)
    path, remedy = _folder(cohort_dir) / "state.json", _remedy(cohort_dir)
    try:
        state = _parse(json.loads(path.read_text(encoding="utf-8")), cohort_dir)
    except (FileNotFoundError, NotADirectoryError):
        _refuse_foreign(cohort_dir, data.name)
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from error
    if state.name != data.name:
        raise UsageError(f"{cohort_dir}: holds the shards of cohort {state.name}, not {data.name}; {remedy}")
    now = settings_of(data)
    changed = [
        f"data.{key}: {state.settings.get(key)} -> {now.get(key)}"
        for key in sorted({*now, *state.settings})
        if state.settings.get(key) != now.get(key)
    ]
    if changed:
        raise UsageError(f"{cohort_dir}: the shards were built with other settings ({'; '.join(changed)}); {remedy}")
    return state


def write(data: PreparedData, state: State) -> None:
    """Remember the build before its first shard."""
    _write(_folder(Path(data.cohort_dir)) / "state.json", asdict(state))


def contents_of(cohort: Cohort) -> dict[str, list[str | None]]:
    """What the shards of a cohort are cut from, for `State.contents`."""
    return {name: [s.split, s.image_sha256, s.label_sha256] for name, s in cohort.subjects.items()}


def check_unchanged(data: PreparedData, before: State, now: Cohort) -> None:
    """DataError when the cohort is no longer the one that the shards were built from, with the difference."""
    old, new = before.contents, contents_of(now)
    changes = [f"{name} is new" for name in sorted(set(new) - set(old))]
    changes += [f"{name} is gone" for name in sorted(set(old) - set(new))]
    for name in sorted(set(old) & set(new)):
        (split, *voxels), (new_split, *new_voxels) = old[name], new[name]
        pairs = zip(("image", "label"), voxels, new_voxels, strict=True)
        changes += [f"the {kind} of {name} changed" for kind, was, is_now in pairs if was != is_now]
        if split != new_split:
            changes.append(f"{name} moved from {split} to {new_split}")
    if changes:
        remedy = _remedy(Path(data.cohort_dir))
        raise DataError(
            f"{data.cohort_dir}: the cohort changed since its shards were built: {'; '.join(changes)}; {remedy}"
        )


def shard_path(cohort_dir: Path, shard: PlannedShard) -> Path:
    """Where a planned shard lies."""
    return cohort_dir / "shards" / shard.name


def note(cohort_dir: Path, shard: PlannedShard, info: ShardInfo) -> None:
    """Remember a finished shard."""
    _write(_note_path(cohort_dir, shard), asdict(info))


def inspect(cohort_dir: Path, shard: PlannedShard) -> ShardInfo | str | None:
    """The shard's entry when it is whole to the last byte, None when it was never finished, else what is wrong."""
    path = shard_path(cohort_dir, shard)
    try:
        info = ShardInfo(**json.loads(_note_path(cohort_dir, shard).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not path.is_file():
        return None
    if path.stat().st_size != info.bytes:
        return f"{path}: {path.stat().st_size} bytes, {info.bytes} were written"
    return info if sha256_of(path) == info.sha256 else f"{path}: its bytes changed (sha256 differs)"


def _parse(content: Any, cohort_dir: Path) -> State:
    """TypeError or ValueError for whatever is not as `State` says.

    Builds of before there were `contents` have them in cohort.json alone.
    """
    if isinstance(content, dict) and "contents" not in content:
        content["contents"] = contents_of(read_cohort(cohort_dir))
    state = State(**content)
    if not all(isinstance(part, dict) for part in (state.settings, state.inputs, state.contents)):
        raise ValueError("settings, inputs or contents are damaged")
    if not isinstance(state.set_aside, list) or any(len(entry) != 3 for entry in state.contents.values()):
        raise ValueError("set_aside or contents are damaged")
    return state


def _refuse_foreign(cohort_dir: Path, name: str) -> None:
    """UsageError where shards or a cohort lie that no build of this cohort made."""
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


def _note_path(cohort_dir: Path, shard: PlannedShard) -> Path:
    return _folder(cohort_dir) / f"{shard.name.replace('/', '-')}.json"


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        write_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); make room and start again") from error


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
