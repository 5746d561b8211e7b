"""The checkpoints of one run as directories on disk: published whole, chosen, verified, read in every version, pruned.

step_00000100/           counts when its manifest.json does: sha256 and bytes of every other file, written last
step_00000100.partial    being written, or left by a killed run
*.old                    being deleted, or held open by somebody on NFS
*.set_aside              newer than the checkpoint that a run was told to go on from; ours to name, yours to delete
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from vesselgan.core.atomic_io import sha256_of, write_text
from vesselgan.core.errors import CheckpointError

FORMAT_VERSION = 2
STATE, MANIFEST = "state.json", "manifest.json"
STATE_KEYS = ("step", "state", "engines", "is_kept")
SUFFIXES = (".partial", ".old", ".set_aside")


def name_of(step: int) -> str:
    """The name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def names_in(folder: Path) -> list[str]:
    """Published checkpoints, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p.name for p in folder.iterdir() if p.is_dir() and p.suffix not in SUFFIXES), reverse=True)


def publish(partial: Path, final: Path) -> None:
    """Rename a directory whose files are whole and synced; what stood under its name gives way."""
    sync_folder(partial)
    if final.exists():
        put_away(final)
    os.replace(partial, final)
    sync_folder(final.parent)
    write_text(final.parent / "latest", final.name)


def put_away(path: Path) -> None:
    """Delete a checkpoint at once for every reader; files that NFS keeps for somebody are left for the next sweep."""
    old = path.with_name(f"{path.name}.{time.time_ns()}.old")
    os.rename(path, old)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what killed saves and failed deletes left. Never raises: it is not worth a run."""
    for pattern in ("*.partial", "*.old"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, newest: str, *, keep_last: int, keep: Collection[str]) -> None:
    """Delete what is older than the last `keep_last` whole checkpoints up to `newest`, which was just published.

    Those named in `keep` stay, and those that were saved to be kept. A delete that fails is told and tried again.
    """
    num_whole = 0
    for name in (name for name in names_in(folder) if name <= newest):
        is_whole = not damage(folder / name, files=())
        num_whole += is_whole
        if (is_whole and num_whole <= keep_last) or name in keep or (is_whole and _is_kept(folder / name)):
            continue
        try:
            put_away(folder / name)
        except OSError as error:
            warn(f"{folder / name}: cannot be deleted ({error.strerror}); it stays, training goes on")


def set_aside_after(folder: Path, name: str) -> None:
    """Rename whole checkpoints newer than `name`, from which a run was told to go on: they are not of its future."""
    for newer in (other for other in names_in(folder) if other > name):
        aside = f"{newer}.{time.time_ns()}.set_aside"
        os.rename(folder / newer, folder / aside)
        warn(f"{folder / newer}: newer than {name}, from where this run goes on; renamed to {aside}")


def choose(run_dir: Path, name: str | None, *, files: Collection[str] | None = None) -> Path | None:
    """The checkpoint called `name`, or the newest whole one with a warning for each that is not; None without any.

    files: those that will be read, whose checksums are then compared (None: all); sizes always are. CheckpointError
    when the named one, or every one, is damaged.
    """
    folder = Path(run_dir) / "checkpoints"
    names = names_in(folder)
    if name is not None:
        if name not in names:
            raise CheckpointError(f"{folder}: no checkpoint `{name}`; there are: {', '.join(names) or 'none'}")
        if found := damage(folder / name, files=files):
            raise CheckpointError(f"{folder / name}: {found}; name another one, or leave checkpoint= away")
        return folder / name
    for candidate in names:
        found = damage(folder / candidate, files=files)
        if not found:
            return folder / candidate
        warn(f"{folder / candidate}: {found}; using the one before it")
    if names:
        raise CheckpointError(
            f"{folder}: none of {', '.join(names)} is whole; restore one from a backup, or start a new run_dir"
        )
    return None


def damage(path: Path, *, files: Collection[str] | None = None) -> str:
    """What is wrong with a checkpoint, in words; empty when it is whole. files: as in `choose`."""
    try:
        expected = {file: (int(entry["bytes"]), str(entry["sha256"])) for file, entry in entries(path).items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} is not readable ({type(error).__name__}: {error})"
    if STATE not in expected:
        return f"{STATE} is not in {MANIFEST}"
    for file, (num_bytes, sha256) in expected.items():
        try:
            size = (path / file).stat().st_size
            if size != num_bytes:
                return f"{file} has {size} bytes, not {num_bytes}"
            if (files is None or file in files or file == STATE) and sha256_of(path / file) != sha256:
                return f"{file} is not what was written (sha256 differs)"
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:
            return f"{file} is not readable ({error.strerror})"
    return ""


def entries(path: Path) -> dict[str, dict[str, Any]]:
    """The manifest of a whole checkpoint: file -> sha256 and bytes."""
    return json.loads((path / MANIFEST).read_text())


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint, as the newest version would have written it. CheckpointError for a newer one."""
    try:
        told = json.loads((path / STATE).read_text())
        version = int(told["format_version"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path / STATE}: not the state of a checkpoint ({type(error).__name__})") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: made by version {version} of the format, this vesselgan reads up to {FORMAT_VERSION}: upgrade it"
        )
    for older in range(version, FORMAT_VERSION):
        told = MIGRATIONS[older](told)
    if missing := [key for key in STATE_KEYS if key not in told]:
        raise CheckpointError(f"{path / STATE}: lacks {', '.join(missing)}")
    return told


def _from_1(told: dict[str, Any]) -> dict[str, Any]:
    """Version 1 kept no checkpoint for ever, and a run's batch size never changed: its data position is its step's.

    Its meter counted steps, the next one how often each number was told.
    """
    state = {"position": None, **told["state"]}
    if "count" in state.get("meter", {}):
        sums = state["meter"]["sums"]
        state["meter"] = {"counts": dict.fromkeys(sums, state["meter"]["count"]), "sums": sums}
    return told | {"format_version": 2, "is_kept": False, "state": state}


# Version -> what makes the next version of it.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _is_kept(path: Path) -> bool:
    try:
        return bool(read_state(path)["is_kept"])
    except CheckpointError:
        return True  # of a newer version: not ours to delete
