"""Checkpoints that are whole or absent, hold no pickle, and do not depend on the number of ranks or the ZeRO stage.

    checkpoints/step_00000100/<player>.safetensors             float32 weights and buffers, by name
                              <player>.optimizer.safetensors   Adam's moments, `<parameter>/<moment>`
                              <extra>.safetensors              what the caller adds, such as a moving average
                              state.json                       step, loss scalers, counters, the caller's state
                              manifest.json                    sha256 and bytes of the above, written last
    checkpoints/latest                                         the newest one's name

No random state is among them, because none exists: every draw (patches, their turns, latents, epsilons, dropout, the
fixed latents of the pictures) is a function of the seed and a position, and both are in the caller's state.
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
from vesselgan.runtime import checkpoint_folder as shelf
from vesselgan.runtime import engine_state
from vesselgan.runtime.checkpoint_folder import name_of as name_of
from vesselgan.runtime.distributed import World, barrier, together
from vesselgan.runtime.engine import Engine
from vesselgan.runtime.tensor_files import Part, TensorFile, part_of, write_parts, write_pieces

SLOW_DISK = 100e6
"""Bytes per second, the guess for a disk that was not measured yet: a busy network file system."""


@dataclass(frozen=True)
class Saved:
    """A published checkpoint and what it cost."""

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
) -> Saved:
    """Publish `checkpoints/step_<step>`; a collective call. `state` must be JSON.

    ResourceError when the disk is full, NumericError for a number that is not finite: neither is ever published.
    `extra`: further tensors by file stem, the same on every rank. The newest `keep_last` checkpoints stay, those named
    in `keep`, and, for ever, those saved with `is_kept`.
    """
    began = time.perf_counter()
    final = run_dir / "checkpoints" / name_of(step)
    files = {f"{stem}.safetensors": _parts(tensors) for stem, tensors in (extra or {}).items()}
    for name, engine in engines.items():
        files[f"{name}.safetensors"] = engine_state.weights_of(engine)
        files[f"{name}.optimizer.safetensors"] = engine_state.moments_of(engine)
    mechanics = {name: engine_state.mechanics_of(engine) for name, engine in engines.items()}
    told = {"format_version": shelf.FORMAT_VERSION, "step": step, "is_kept": is_kept}
    told |= {"state": state, "engines": mechanics}
    partial = final.with_name(f"{final.name}.partial")
    num_bytes, error = _write(partial if world.is_main else None, files, told)

    def publish() -> None:
        try:
            if error is not None:
                raise error
            shelf.publish(partial, final)
        except NumericError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except OSError as why:
            shutil.rmtree(partial, ignore_errors=True)
            raise ResourceError(
                f"{partial}: a checkpoint of {_gib(num_bytes)}: {describe(why)}; earlier ones are whole. Make room, "
                "then go on with the same command"
            ) from why
        shelf.prune(final.parent, final.name, keep_last=keep_last, keep=keep)

    together(world, publish)
    return Saved(final, num_bytes, time.perf_counter() - began)


def load(
    run_dir: Path,
    name: str | None,
    engines: dict[str, Engine],
    *,
    world: World,
    accept: Callable[[dict[str, Any]], None] = lambda state: None,
) -> dict[str, Any] | None:
    """Restore every engine from checkpoint `name` (None: the newest whole one); returns its state, None without one.

    The next step is the one the unbroken run would have taken. CheckpointError for a damaged, foreign or incomplete
    checkpoint, before anything is changed. Newer ones than a named one are set aside, once `accept`, which may raise,
    has seen the state.
    """
    chosen = together(world, lambda: shelf.choose(run_dir, name))
    if chosen is None:
        return None
    told = shelf.read_state(chosen)
    if set(told["engines"]) != set(engines):
        raise CheckpointError(f"{chosen}: holds {sorted(told['engines'])}, this run has {sorted(engines)}")
    weights = {player: _open(chosen, f"{player}.safetensors") for player in engines}
    moments = {player: _open(chosen, f"{player}.optimizer.safetensors") for player in engines}
    _refuse_other_networks(chosen, engines, weights, moments)
    missing = [
        f"{what} of the {player}"
        for player, engine in engines.items()
        for what in engine_state.missing_mechanics(engine, told["engines"][player], moments[player])
    ]
    if missing:
        raise CheckpointError(
            f"{chosen}: lacks {', '.join(missing)}, so no run can go on from it exactly; a new run can take its "
            f"weights alone: init_from={chosen}"
        )
    for player, engine in engines.items():
        engine_state.restore_weights(engine, weights[player])
        engine_state.restore_optimizer(engine, moments[player], told["engines"][player])
    accept(told["state"])
    if name is not None:
        together(world, lambda: shelf.set_aside_after(chosen.parent, chosen.name))
    barrier()
    return told["state"]


def start_from(source: Path, engines: dict[str, Engine], *, world: World) -> dict[str, Any]:
    """Copy weights and buffers alone from a run directory or one of its checkpoints; returns where they came from.

    Everything else stays fresh. CheckpointError when there is none, or of other networks.
    """
    files = [f"{player}.safetensors" for player in engines]
    is_one = (source / shelf.MANIFEST).is_file() and source.parent.name == "checkpoints"
    run_dir, name = (source.parent.parent, source.name) if is_one else (source, None)
    chosen = together(world, lambda: shelf.choose(run_dir, name, files=files))
    if chosen is None:
        raise CheckpointError(
            f"init_from={source}: neither a run directory with checkpoints nor one checkpoint's directory"
        )
    told = shelf.read_state(chosen)
    weights = {player: _open(chosen, f"{player}.safetensors") for player in engines}
    _refuse_other_networks(chosen, engines, weights, {})
    for player, engine in engines.items():
        engine_state.restore_weights(engine, weights[player])
    sha256 = {file: entry["sha256"] for file, entry in shelf.entries(chosen).items() if file in files}
    return {"checkpoint": str(chosen), "step": told["step"], "sha256": sha256}


def read_weights(run_dir: Path, player: str, name: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(float32 weights and buffers of `player`, the run's state), in one process; CheckpointError without one.

    Verifies what it reads: this player's file and the state.
    """
    file = f"{player}.safetensors"
    chosen = shelf.choose(Path(run_dir), name, files=(file,))
    if chosen is None:
        raise CheckpointError(f"{run_dir}: no checkpoint yet; train it first, or wait for the first one")
    if file not in shelf.entries(chosen):
        raise CheckpointError(f"{chosen}: holds no {player}; is this a run of another kind?")
    return TensorFile(chosen / file).all(), shelf.read_state(chosen)["state"]


def expected_bytes(engines: Iterable[Engine], extra: Iterable[Tensor] = ()) -> int:
    """What one checkpoint will take on disk; `extra`: the further tensors that will be saved with it."""
    tensors = sum(part_of(tensor).num_bytes for tensor in extra)
    return tensors + sum(engine_state.num_bytes_of(engine) for engine in engines)


def check_disk(run_dir: Path, num_bytes: int, *, keep_last: int, num_kept: int = 0) -> str:
    """One line on the disk that the run's checkpoints need; ResourceError when there is less.

    num_kept: those that stay for ever beside the last ones. One more is being written while they all stand.
    """
    folder = run_dir / "checkpoints"
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    count = keep_last + num_kept + 1
    needed, free = count * num_bytes, shutil.disk_usage(run_dir).free + there
    words = f"checkpoints of {_gib(num_bytes)} each, {count} at most, one of them being written: {_gib(needed)}"
    if needed > free:
        raise ResourceError(
            f"{run_dir}: {words}; the disk has {_gib(free)} for them: make room, or lower train.keep_last "
            "(unet.keep_last), raise train.save_every_epochs"
        )
    return f"{words}; free {_gib(free)}"


def _write(
    partial: Path | None, files: dict[str, dict[str, Part]], told: dict[str, Any]
) -> tuple[int, Exception | None]:
    """(bytes of the tensors, what went wrong); on ranks without a path only the collective calls."""
    error, entries = None, {}
    if partial is not None:
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            shelf.sweep(partial.parent)
            partial.mkdir()
        except OSError as why:
            error = why
    for file, parts in files.items():
        is_writer = partial is not None and error is None
        try:
            entries[file] = write_parts(partial / file if is_writer else None, parts)
        except (OSError, NumericError) as why:
            error = why
    num_bytes = sum(part.num_bytes for parts in files.values() for part in parts.values())
    if partial is not None and error is None:
        try:
            entries[shelf.STATE] = write_pieces(partial / shelf.STATE, [json.dumps(told, indent=1).encode()])
            write_pieces(partial / shelf.MANIFEST, [json.dumps(entries, indent=1).encode()])
        except OSError as why:
            error = why
    return num_bytes, error


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    return {key: part_of(tensor) for key, tensor in tensors.items()}


def _open(chosen: Path, file: str) -> TensorFile:
    if file not in shelf.entries(chosen):
        raise CheckpointError(
            f"{chosen}: lacks {file}, so no run can go on from it; a new run can take its weights alone: "
            f"init_from={chosen}"
        )
    return TensorFile(chosen / file)


def _refuse_other_networks(
    chosen: Path, engines: dict[str, Engine], weights: dict[str, TensorFile], moments: dict[str, TensorFile]
) -> None:
    for player, engine in engines.items():
        lines = engine_state.differing_keys(engine, weights[player], moments.get(player))
        if lines:
            listed = ", ".join(lines[:8]) + (f" and {len(lines) - 8} more" if len(lines) > 8 else "")
            raise CheckpointError(f"{chosen}: the {player} has another architecture; differing: {listed}")


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.3f} GiB"
