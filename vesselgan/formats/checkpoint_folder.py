"""The checkpoint directories of a run: named, published atomically, verified, found, pruned.

checkpoints/             of a run directory; `latest` in it names the newest one
step_00000100/           complete if it matches manifest.json: sha256 and bytes of every other file, written last
    <name>.safetensors, <network>.optimizer.safetensors, state.json
step_00000100.partial    being written, or left by a killed run
*.old                    being deleted, or held open by a reader on NFS
*.set_aside              newer than the checkpoint that a run resumed from by name; never deleted by us
"""

import json
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vesselgan.core.atomic_io import sha256_of, sync_folder, write_text
from vesselgan.core.console import log
from vesselgan.core.errors import CheckpointError, ResourceError, check_readable
from vesselgan.core.names import is_id

FORMAT_VERSION = 3
CHECKPOINTS, LATEST = "checkpoints", "latest"
STANDING, EMA = "generator_standing", "generator_ema"
"""Stems of what `generate` can sample from, beside the last weights."""
STATE, MANIFEST = "state.json", "manifest.json"
STATE_KEYS = ("step", "state", "engines", "is_kept")
SUFFIXES = (".partial", ".old", ".set_aside")


def name_of(step: int) -> str:
    """The name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def step_of(name: str) -> int:
    """The steps of the checkpoint of that name; 0 for a name that is not ours."""
    digits = name.removeprefix("step_")
    return int(digits) if digits.isdecimal() else 0


def weights_file(name: str) -> str:
    """The file of a network's float32 weights and buffers, or of further tensors of that name."""
    return f"{name}.safetensors"


def optimizer_file(network: str) -> str:
    """The file of a network's Adam moments, `<parameter>/<moment>`."""
    return f"{network}.optimizer.safetensors"


def split_path(source: Path) -> tuple[Path, str | None]:
    """(run directory, checkpoint's name) of a checkpoint's path; (source, None) for any other path."""
    if (source / MANIFEST).is_file() and source.parent.name == CHECKPOINTS:
        return source.parent.parent, source.name
    return source, None


def names_in(folder: Path) -> list[str]:
    """Published checkpoints, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p.name for p in folder.iterdir() if p.is_dir() and p.suffix not in SUFFIXES), reverse=True)


def publish(partial: Path, final: Path) -> None:
    """Rename a directory of complete, synced files to its final name; an earlier one of that name is deleted."""
    sync_folder(partial)
    if final.exists():
        delete(final)
    os.replace(partial, final)
    sync_folder(final.parent)
    write_text(final.parent / LATEST, final.name)


def delete(path: Path) -> None:
    """Delete a checkpoint atomically for readers; files that NFS keeps open stay until `delete_leftovers`."""
    old = path.with_name(f"{path.name}.{time.time_ns()}.old")
    os.rename(path, old)
    shutil.rmtree(old, ignore_errors=True)


def delete_leftovers(folder: Path) -> None:
    """Delete what killed saves and failed deletes left behind. Never raises."""
    for pattern in ("*.partial", "*.old"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, newest: str, *, keep_last: int, keep: Collection[str]) -> None:
    """Delete all but the last `keep_last` complete checkpoints up to `newest`, which was just published.

    Those named in `keep` and those saved with `is_kept` stay; a damaged one goes with a warning. A failed delete
    is a warning; the next save tries again.
    """
    num_complete = 0
    for name in (name for name in names_in(folder) if name <= newest):
        try:
            problem = damage(folder / name, files=())
        except ResourceError as error:
            log.warning(f"{error}; training continues")
            continue
        num_complete += not problem
        if name in keep or (not problem and (num_complete <= keep_last or _is_kept(folder / name))):
            continue
        if problem:
            log.warning(f"{folder / name}: {problem}; deleted")
        try:
            delete(folder / name)
        except OSError as error:
            log.warning(f"{folder / name}: cannot be deleted ({error.strerror}); training continues")


def set_aside_newer(folder: Path, name: str) -> None:
    """Rename the checkpoints newer than `name`, from which a run resumes."""
    for newer in (other for other in names_in(folder) if other > name):
        aside = f"{newer}.{time.time_ns()}.set_aside"
        os.rename(folder / newer, folder / aside)
        log.warning(f"{folder / newer}: newer than {name}, from which this run resumes; renamed to {aside}")


def find_checkpoint(run_dir: Path, name: str | None, *, files: Collection[str] | None = None) -> Path | None:
    """Returns checkpoint `name`, or the newest complete one with a warning for each damaged one; None without any.

    files: the files that will be read, whose checksums are compared (None: all); sizes always are. CheckpointError if
    the named one, or every one, is damaged; ResourceError if the system cannot read one now.
    """
    folder = Path(run_dir) / CHECKPOINTS
    names = names_in(folder)
    if name is not None:
        if name not in names:
            raise CheckpointError(f"{folder}: no checkpoint `{name}`; there are: {', '.join(names) or 'none'}")
        if problem := damage(folder / name, files=files):
            raise CheckpointError(f"{folder / name}: {problem}; name another one, or leave checkpoint= out")
        return folder / name
    for candidate in names:
        problem = damage(folder / candidate, files=files)
        if not problem:
            return folder / candidate
        log.warning(f"{folder / candidate}: {problem}; using the one before it")
    if names:
        raise CheckpointError(
            f"{folder}: none of {', '.join(names)} is whole; restore one from a backup, or start a new run_dir"
        )
    return None


def damage(path: Path, *, files: Collection[str] | None = None) -> str:
    """What is wrong with a checkpoint; empty if it is complete. files, ResourceError: as in `find_checkpoint`."""
    try:
        expected = {file: (int(entry["bytes"]), str(entry["sha256"])) for file, entry in read_manifest(path).items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        check_readable(path / MANIFEST, error)
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
            check_readable(path / file, error)
            return f"{file} is not readable ({error.strerror})"
    return ""


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """File -> sha256 and bytes. Raises OSError or ValueError."""
    manifest: dict[str, dict[str, Any]] = json.loads((path / MANIFEST).read_text())
    if foreign := [file for file in manifest if not is_id(file)]:
        raise ValueError(f"{foreign[0]!a} is no file of a checkpoint")
    return manifest


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint; CheckpointError for another version of the format."""
    try:
        content = json.loads((path / STATE).read_text())
        version = int(content["format_version"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        check_readable(path / STATE, error)
        raise CheckpointError(f"{path / STATE}: not the state of a checkpoint ({type(error).__name__})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: made by version {version} of the format, this vesselgan reads version {FORMAT_VERSION}; use the "
            "vesselgan that made it"
        )
    if missing := [key for key in STATE_KEYS if key not in content]:
        raise CheckpointError(f"{path / STATE}: lacks {', '.join(missing)}")
    return content


def _is_kept(path: Path) -> bool:
    try:
        return bool(read_state(path)["is_kept"])
    except (CheckpointError, ResourceError):
        return True  # of another version, or not readable now: not ours to delete
