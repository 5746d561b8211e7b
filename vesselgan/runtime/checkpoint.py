"""Checkpoints of a run: complete or absent, without pickle, independent of the number of ranks and the ZeRO stage.

Each network's weights and buffers in float32, its optimizer's moments, further tensors of the caller such as a moving
average, and a state: step, loss scalers, counters, the caller's own. Names of files: formats.checkpoint_folder.

No random state is stored: every draw (patches, orientations, latents, epsilons, dropout, sample images) is a function
of the seed and a position, which are in the caller's state.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vesselgan.core.atomic_io import describe
from vesselgan.core.errors import CheckpointError, NumericError, ResourceError
from vesselgan.core.memory import format_bytes
from vesselgan.formats import checkpoint_folder as folders
from vesselgan.formats.checkpoint_folder import name_of as name_of
from vesselgan.formats.checkpoint_folder import optimizer_file, weights_file
from vesselgan.formats.run_dir import UNKNOWN, RunDir
from vesselgan.runtime import engine_state
from vesselgan.runtime.distributed import World, barrier, run_on_rank0
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.tensor_files import LazyTensor, TensorFile, lazy_tensor, write_chunks, write_tensors

SLOW_DISK = 100e6
"""Bytes per second assumed of a disk that was not measured yet: a busy network file system."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A published checkpoint and its cost."""

    path: Path
    num_bytes: int
    seconds: float


def save(
    run_dir: Path,
    step: int,
    engines: dict[str, Engine],
    state: dict[str, Any],
    *,
    keep_last: int,
    world: World,
    keep: Collection[str] = (),
    is_kept: bool = False,
    extra: Mapping[str, dict[str, Tensor]] | None = None,
) -> SavedCheckpoint:
    """Publish the checkpoint after `step` steps; a collective call. `state` must be JSON.

    ResourceError for a full disk, NumericError for a number that is not finite; nothing is published then. extra:
    further tensors by file stem, the same on every rank. The newest `keep_last` checkpoints stay, those named in
    `keep`, and for ever those saved with `is_kept`.
    """
    started_at = time.perf_counter()
    final = run_dir / folders.CHECKPOINTS / name_of(step)
    files = {
        weights_file(stem): {key: lazy_tensor(tensor) for key, tensor in tensors.items()}
        for stem, tensors in (extra or {}).items()
    }
    for name, engine in engines.items():
        files[weights_file(name)] = engine_state.weights_of(engine)
        files[optimizer_file(name)] = engine_state.moments_of(engine)
    content: dict[str, Any] = {"format_version": folders.FORMAT_VERSION, "step": step, "is_kept": is_kept}
    content |= {"state": state, "engines": {name: engine_state.counters_of(engine) for name, engine in engines.items()}}
    partial = final.with_name(f"{final.name}.partial")
    num_bytes = sum(tensor.num_bytes for tensors in files.values() for tensor in tensors.values())
    error = _write(partial if world.is_main else None, files, content)

    def publish() -> None:
        try:
            if error is not None:
                raise error
            folders.publish(partial, final)
        except NumericError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except OSError as cause:
            shutil.rmtree(partial, ignore_errors=True)
            raise ResourceError(
                f"{partial}: a checkpoint of {format_bytes(num_bytes)}: {describe(cause)}; earlier ones are complete. "
                "Make room; the same command resumes from them"
            ) from cause
        folders.prune(final.parent, final.name, keep_last=keep_last, keep=keep)

    run_on_rank0(world, publish)
    return SavedCheckpoint(final, num_bytes, time.perf_counter() - started_at)


def load(
    run_dir: Path,
    name: str | None,
    engines: dict[str, Engine],
    *,
    world: World,
    accept: Callable[[dict[str, Any]], object] = lambda state: None,
) -> dict[str, Any] | None:
    """Restore all engines from checkpoint `name` (None: the newest complete one); returns its state, or None if none.

    The next step equals that of the uninterrupted run. CheckpointError for a damaged, foreign or incomplete checkpoint,
    before anything is changed. Checkpoints newer than a named one are set aside, after `accept`, which may raise, was
    called with the state.
    """
    path = run_on_rank0(world, lambda: folders.find_checkpoint(run_dir, name))
    if path is None:
        return None
    content = folders.read_state(path)
    if set(content["engines"]) != set(engines):
        raise CheckpointError(f"{path}: holds {sorted(content['engines'])}, this run has {sorted(engines)}")
    weights = {network: _open(path, weights_file(network)) for network in engines}
    moments = {network: _open(path, optimizer_file(network)) for network in engines}
    _check_architecture(path, engines, weights, moments)
    missing = [
        f"{item} of the {network}"
        for network, engine in engines.items()
        for item in engine_state.missing_items(engine, content["engines"][network], moments[network])
    ]
    if missing:
        raise CheckpointError(
            f"{path}: lacks {', '.join(missing)}, so no run can resume from it exactly; a new run can use its weights "
            f"alone: init_from={path}"
        )
    for network, engine in engines.items():
        engine_state.restore_weights(engine, weights[network])
        engine_state.restore_optimizer(engine, moments[network], content["engines"][network])
    accept(content["state"])
    if name is not None:
        run_on_rank0(world, lambda: folders.set_aside_newer(path.parent, path.name))
    barrier()
    return content["state"]


def init_from(source: Path, engines: dict[str, Engine], *, world: World) -> dict[str, Any]:
    """Copy weights and buffers alone from a run directory or one of its checkpoints; returns their origin.

    It says what they learned from. CheckpointError if there is none, or if it is of other networks.
    """
    files = [weights_file(network) for network in engines]
    run_dir, name = folders.split_path(source)
    path = run_on_rank0(world, lambda: folders.find_checkpoint(run_dir, name, files=files))
    if path is None:
        raise CheckpointError(
            f"init_from={source}: neither a run directory with checkpoints nor the directory of a checkpoint"
        )
    step = folders.read_state(path)["step"]
    weights = {network: _open(path, weights_file(network)) for network in engines}
    _check_architecture(path, engines, weights, {})
    for network, engine in engines.items():
        engine_state.restore_weights(engine, weights[network])
    sha256 = {file: entry["sha256"] for file, entry in folders.read_manifest(path).items() if file in files}
    learned_from = sorted(RunDir(run_dir).learned_from()) or [UNKNOWN]
    return {"checkpoint": str(path), "step": step, "sha256": sha256, "learned_from": learned_from}


def read_weights(run_dir: Path, network: str, name: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(float32 weights and buffers of `network`, the caller's state), in one process; CheckpointError without one.

    Verifies the checksums of the files that it reads.
    """
    file = weights_file(network)
    path = folders.find_checkpoint(Path(run_dir), name, files=(file,))
    if path is None:
        raise CheckpointError(f"{run_dir}: no checkpoint yet; train it first, or wait for the first one")
    if file not in folders.read_manifest(path):
        raise CheckpointError(f"{path}: holds no {network}; is this a run of another kind?")
    return TensorFile(path / file).all(), folders.read_state(path)["state"]


def expected_bytes(engines: Iterable[Engine], extra: Iterable[Tensor] = ()) -> int:
    """Size of one checkpoint on disk; extra: the further tensors that are saved with it."""
    extra_bytes = sum(lazy_tensor(tensor).num_bytes for tensor in extra)
    return extra_bytes + sum(engine_state.num_bytes_of(engine) for engine in engines)


def check_disk(run_dir: Path, num_bytes: int, *, keep_last: int, num_kept: int = 0) -> str:
    """One line on the disk space of the run's checkpoints; ResourceError if there is less.

    num_kept: checkpoints that stay for ever beside the last ones. One more is being written while all of them exist.
    """
    folder = run_dir / folders.CHECKPOINTS
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    count = keep_last + num_kept + 1
    needed, free = count * num_bytes, shutil.disk_usage(run_dir).free + used
    line = f"checkpoints of {format_bytes(num_bytes)} each, {count} at most, one of them being written: "
    line += format_bytes(needed)
    if needed > free:
        raise ResourceError(
            f"{run_dir}: {line}; the disk has {format_bytes(free)} for them: make room, lower train.keep_last "
            "(unet.keep_last), or raise train.save_every_epochs"
        )
    return f"{line}; free {format_bytes(free)}"


def _write(partial: Path | None, files: dict[str, dict[str, LazyTensor]], content: dict[str, Any]) -> Exception | None:
    """Write all files of a checkpoint and return the error, if any; ranks without a path take part in collectives."""
    error: Exception | None = None
    entries = {}
    if partial is not None:
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            folders.delete_leftovers(partial.parent)
            partial.mkdir()
        except OSError as cause:
            error = cause
    for file, tensors in files.items():
        path = partial / file if partial is not None and error is None else None
        try:
            entries[file] = write_tensors(path, tensors)
        except (OSError, NumericError) as cause:
            error = cause
    if partial is not None and error is None:
        try:
            entries[folders.STATE] = write_chunks(partial / folders.STATE, [json.dumps(content, indent=1).encode()])
            write_chunks(partial / folders.MANIFEST, [json.dumps(entries, indent=1).encode()])
        except OSError as cause:
            error = cause
    return error


def _open(path: Path, file: str) -> TensorFile:
    if file not in folders.read_manifest(path):
        raise CheckpointError(
            f"{path}: lacks {file}, so no run can resume from it; a new run can use its weights alone: init_from={path}"
        )
    return TensorFile(path / file)


def _check_architecture(
    path: Path, engines: dict[str, Engine], weights: dict[str, TensorFile], moments: dict[str, TensorFile]
) -> None:
    for network, engine in engines.items():
        lines = engine_state.differing_keys(engine, weights[network], moments.get(network))
        if lines:
            listed = ", ".join(lines[:8]) + (f" and {len(lines) - 8} more" if len(lines) > 8 else "")
            raise CheckpointError(f"{path}: the {network} has another architecture; differing: {listed}")
