"""Checkpoints that are whole or absent, hold no pickle, and do not depend on the number of ranks or the ZeRO stage.

    checkpoints/step_00000100/<player>.safetensors             float32 weights and buffers, by name
                              <player>.optimizer.safetensors   Adam's moments, `<parameter>/<moment>`
                              <extra>.safetensors              what the caller adds, such as a moving average
                              state.json                       step, loss scalers, counters, the caller's state
                              manifest.json                    sha256 and bytes of the above, written last
    checkpoints/latest                                         the newest one's name

Published by renaming a whole directory; `manifest.json` decides whether a directory counts.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesselgan.errors import CheckpointError, ResourceError
from vesselgan.files import sha256_of, write_text
from vesselgan.runtime.distributed import World, barrier, together
from vesselgan.runtime.engine import Engine

FORMAT_VERSION = 1
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
COUNTERS = ("global_steps", "skipped_steps", "micro_steps")


def save(
    run_dir: Path,
    step: int,
    engines: dict[str, Engine],
    state: dict[str, Any],
    *,
    keep_last: int,
    world: World,
    keep: Collection[str] = (),
    extra: Mapping[str, dict[str, Tensor]] | None = None,
) -> Path:
    """Publish `checkpoints/step_<step>`; a collective call. `state` must be JSON. ResourceError when the disk is full.

    `extra`: further tensors by file stem, the same on every rank. The newest `keep_last` checkpoints stay, and those
    named in `keep`.
    """
    folder = run_dir / "checkpoints"
    final = folder / name_of(step)
    partial = folder / f"{final.name}.partial"
    contents = {f"{name}.safetensors": _all_own(tensors) for name, tensors in (extra or {}).items()}
    for name, engine in engines.items():
        weights, moments = _gather(engine, world)
        contents[f"{name}.safetensors"] = weights
        contents[f"{name}.optimizer.safetensors"] = moments
    told = {"format_version": FORMAT_VERSION, "step": step, "state": state}
    told["engines"] = {name: _mechanics(engine) for name, engine in engines.items()}

    def write() -> None:
        try:
            _write(partial, contents, told)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            needed = sum(t.numel() * t.element_size() for tensors in contents.values() for t in tensors.values())
            raise ResourceError(
                f"{partial}: cannot write a checkpoint of {needed / 2**30:.3f} GiB: {error.strerror or error}"
            ) from error
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        write_text(folder / "latest", final.name)
        _prune(folder, keep_last, keep)

    together(world, write)
    barrier()
    return final


def name_of(step: int) -> str:
    """The name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def load(run_dir: Path, name: str | None, engines: dict[str, Engine], *, world: World) -> dict[str, Any] | None:
    """Restore every engine from checkpoint `name` (None: the newest whole one); returns its state, None without one.

    The next step is the one the unbroken run would have taken. CheckpointError for a damaged or foreign checkpoint.
    """
    chosen = together(world, lambda: _choose(run_dir, name))
    if chosen is None:
        return None
    told = _read_state(chosen)
    if set(told["engines"]) != set(engines):
        raise CheckpointError(f"{chosen}: holds {sorted(told['engines'])}, this run has {sorted(engines)}")
    loaded = {player: _load_tensors(chosen / f"{player}.safetensors") for player in engines}
    for player, engine in engines.items():
        _compare_keys(chosen, player, loaded[player], engine.module.state_dict())
    for player, engine in engines.items():
        moments = _load_tensors(chosen / f"{player}.optimizer.safetensors")
        _restore(engine, loaded[player], moments, told["engines"][player])
    barrier()
    return told["state"]


def read_weights(run_dir: Path, player: str, name: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(float32 weights and buffers of `player`, the run's state), in one process; CheckpointError without one."""
    chosen = _choose(Path(run_dir), name)
    if chosen is None:
        raise CheckpointError(f"{run_dir}: no checkpoint yet; train it first, or wait for the first one")
    path = chosen / f"{player}.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{chosen}: holds no {player}; is this a run of another kind?")
    return _load_tensors(path), _read_state(chosen)["state"]


def _gather(engine: Engine, world: World) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Full float32 weights and moments on rank 0's CPU (empty elsewhere); all ranks take part."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for key, value in engine.module.state_dict().items():
        parameter = engine.parameters.get(key)
        is_master = parameter is not None and engine.is_partitioned
        full = safe_get_full_fp32_param(parameter) if is_master else value
        if world.is_main:
            weights[key] = _own(full)
    for key, parameter in engine.parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            if not _has_moments(engine):
                continue
            if engine.is_partitioned:
                full = safe_get_full_optimizer_state(parameter, moment)
            else:
                full = engine.inner_optimizer.state[parameter][moment]
            if world.is_main:
                moments[f"{key}/{moment}"] = _own(full)
    return weights, moments


def _own(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to("cpu", kind, copy=True).contiguous()


def _all_own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: _own(tensor) for key, tensor in tensors.items()}


def _has_moments(engine: Engine) -> bool:
    return any(state for state in engine.inner_optimizer.state.values())


def _mechanics(engine: Engine) -> dict[str, Any]:
    """What DeepSpeed and Adam count, as JSON."""
    states = [state for state in engine.inner_optimizer.state.values() if state]
    scaler = engine.scaler
    return {
        "optimizer_step": float(states[0]["step"]) if states else 0.0,
        "scaler": {key: getattr(scaler, key) for key in SCALER_FIELDS if hasattr(scaler, key)} if scaler else None,
        "counters": {key: int(getattr(engine.deepspeed, key)) for key in COUNTERS},
    }


def _restore(engine: Engine, weights: dict[str, Tensor], moments: dict[str, Tensor], told: dict[str, Any]) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    engine.module.load_state_dict(weights)
    device = next(iter(engine.parameters.values())).device
    if moments:
        _make_moments(engine, told["optimizer_step"])
    for key, parameter in engine.parameters.items():
        if engine.is_partitioned:
            # This sets the float32 master only; the half weights were copied by load_state_dict above.
            safe_set_full_fp32_param(parameter, weights[key].to(device))
        for moment in ("exp_avg", "exp_avg_sq"):
            value = moments.get(f"{key}/{moment}")
            if value is None:
                continue
            if engine.is_partitioned:
                safe_set_full_optimizer_state(parameter, value.to(device), moment)
            else:
                engine.inner_optimizer.state[parameter][moment].copy_(value)
    if engine.scaler is not None:
        if told["scaler"] is None:
            raise CheckpointError("the checkpoint holds no loss scaler, but this run is in fp16: it is of another run")
        for key, value in told["scaler"].items():
            setattr(engine.scaler, key, value)
    for key, value in told["counters"].items():
        setattr(engine.deepspeed, key, value)


def _make_moments(engine: Engine, optimizer_step: float) -> None:
    """Adam makes its state in the first step; a restored run needs it before."""
    inner = engine.inner_optimizer
    for group in inner.param_groups:
        for parameter in group["params"]:
            on_device = parameter.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
            inner.state[parameter] = {
                "step": torch.tensor(optimizer_step, dtype=torch.float32, device=on_device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
    if engine.is_partitioned:
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


def _compare_keys(chosen: Path, player: str, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    differing = sorted(set(found) ^ set(wanted))
    differing += [key for key in sorted(set(found) & set(wanted)) if found[key].shape != wanted[key].shape]
    if differing:
        listed = ", ".join(differing[:8]) + (f" and {len(differing) - 8} more" if len(differing) > 8 else "")
        raise CheckpointError(f"{chosen}: {player} has another architecture; differing: {listed}")


def _write(partial: Path, contents: dict[str, dict[str, Tensor]], told: dict[str, Any]) -> None:
    from safetensors.torch import save as to_bytes

    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    entries = {}
    for name, tensors in contents.items():
        entries[name] = _write_bytes(partial / name, to_bytes(tensors))
    entries["state.json"] = _write_bytes(partial / "state.json", json.dumps(told, indent=1).encode())
    _write_bytes(partial / "manifest.json", json.dumps(entries, indent=1).encode())
    _sync_folder(partial)


def _write_bytes(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(folder: Path) -> list[str]:
    """Published checkpoints, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p.name for p in folder.iterdir() if p.is_dir() and p.suffix != ".partial"), reverse=True)


def _prune(folder: Path, keep_last: int, keep: Collection[str]) -> None:
    """Delete what is older than the newest `keep_last`; a delete that fails (NFS) is left for the next save."""
    for name in _names(folder)[keep_last:]:
        if name not in keep:
            shutil.rmtree(folder / name, ignore_errors=True)


def _choose(run_dir: Path, name: str | None) -> Path | None:
    folder = Path(run_dir) / "checkpoints"
    if name is not None:
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder}: no checkpoint `{name}`; there are: {', '.join(_names(folder)) or 'none'}")
        damage = _damage(folder / name)
        if damage:
            raise CheckpointError(f"{folder / name}: {damage}; name another one, or leave checkpoint= away")
        return folder / name
    names = _names(folder)
    for candidate in names:
        damage = _damage(folder / candidate)
        if not damage:
            return folder / candidate
        print(f"warning: {folder / candidate}: {damage}; using the one before it", file=sys.stderr, flush=True)
    if names:
        raise CheckpointError(
            f"{folder}: none of {', '.join(names)} is whole; restore one from a backup, or start anew"
        )
    return None


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint, in words; empty when it is whole."""
    try:
        entries = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError) as error:
        return f"manifest.json is not readable ({error})"
    for file, entry in entries.items():
        target = path / file
        if not target.is_file():
            return f"{file} is missing"
        if target.stat().st_size != entry["bytes"]:
            return f"{file} has {target.stat().st_size} bytes, not {entry['bytes']}"
        if sha256_of(target) != entry["sha256"]:
            return f"{file} is not what was written (sha256 differs)"
    return ""


def _read_state(path: Path) -> dict[str, Any]:
    told = json.loads((path / "state.json").read_text())
    if told["format_version"] > FORMAT_VERSION:
        raise CheckpointError(f"{path}: made by version {told['format_version']} of the format; upgrade vesselgan")
    return told


def _load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors ({error})") from error
