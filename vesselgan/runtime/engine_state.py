"""The state of an engine between two steps, read from DeepSpeed and restored exactly.

Weights and Adam's moments are float32 and unpartitioned, for every ZeRO stage and number of ranks; Adam's step count,
the loss scaler and DeepSpeed's counters are JSON. Stage 3 does not restore exactly; config.deepspeed refuses it.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from vesselgan.runtime.engine import Engine
from vesselgan.runtime.muon import Muon
from vesselgan.runtime.tensor_files import LazyTensor, TensorFile, lazy_tensor

SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
COUNTERS = ("global_steps", "skipped_steps")


def weights_of(engine: Engine) -> dict[str, LazyTensor]:
    """Weights and buffers by name; fetching one is a collective call."""
    from deepspeed.utils import safe_get_full_fp32_param

    tensors = {}
    for key, value in engine.module.state_dict().items():
        parameter = engine.parameters.get(key)
        is_master = parameter is not None and engine.is_partitioned
        fetch = partial(safe_get_full_fp32_param, parameter) if is_master else None
        tensors[key] = lazy_tensor(value, fetch)
    return tensors


def moments_of(engine: Engine) -> dict[str, LazyTensor]:
    """Adam's moments as `<parameter>/<moment>`, none before the first step; fetching is a collective call."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if not any(engine.inner_optimizer.state.values()):
        return {}
    tensors = {}
    for key, (parameter, moment) in _moments(engine).items():
        if engine.is_partitioned:
            fetch = partial(safe_get_full_optimizer_state, parameter, moment)
            tensors[key] = lazy_tensor(parameter, fetch)
        else:
            tensors[key] = lazy_tensor(engine.inner_optimizer.state[parameter][moment])
    return tensors


def _moments(engine: Engine) -> dict[str, tuple[nn.Parameter, str]]:
    """`<parameter>/<moment>` -> the two."""
    return {f"{key}/{m}": (p, m) for key, p in engine.parameters.items() for m in engine.moment_names(p)}


def num_bytes_of(engine: Engine) -> int:
    """Size of weights, buffers and moments on disk, also before the first step."""
    weights = sum(lazy_tensor(value).num_bytes for value in engine.module.state_dict().values())
    return weights + sum(lazy_tensor(parameter).num_bytes for parameter, _ in _moments(engine).values())


def counters_of(engine: Engine) -> dict[str, Any]:
    """Step counts of Adam and DeepSpeed and the loss scaler, as JSON."""
    states = [state for state in engine.inner_optimizer.state.values() if state]
    scaler = engine.scaler
    return {
        "optimizer_step": float(states[0]["step"]) if states else 0.0,
        "scaler": {key: getattr(scaler, key) for key in SCALER_FIELDS if hasattr(scaler, key)} if scaler else None,
        "counters": {key: int(getattr(engine.counters, key)) for key in COUNTERS},
        "bad_steps_in_a_row": engine.skips.bad_in_a_row,
    }


def differing_keys(engine: Engine, weights: TensorFile, moments: TensorFile | None) -> list[str]:
    """Tensors that only the files or only the engine has, or of another shape; one phrase each."""
    expected = {key: tuple(value.shape) for key, value in engine.module.state_dict().items()}
    lines = _differing(weights.shapes(), expected)
    if moments is not None and moments.shapes():
        expected = {key: tuple(parameter.shape) for key, (parameter, _) in _moments(engine).items()}
        # A stored first moment is ignored with beta1 = 0: no step would use it.
        is_ignored = {f"{key}/exp_avg" for key in engine.parameters} - expected.keys()
        stored = {key: shape for key, shape in moments.shapes().items() if key not in is_ignored}
        lines += [f"optimizer {line}" for line in _differing(stored, expected)]
    return lines


def _differing(stored: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> list[str]:
    lines = [f"{key} (only in the checkpoint)" for key in sorted(stored.keys() - expected.keys())]
    lines += [f"{key} (not in the checkpoint)" for key in sorted(expected.keys() - stored.keys())]
    common = sorted(stored.keys() & expected.keys())
    return lines + [f"{k} {list(stored[k])} -> {list(expected[k])}" for k in common if stored[k] != expected[k]]


def missing_items(engine: Engine, counters: dict[str, Any], moments: TensorFile) -> list[str]:
    """What the checkpoint lacks, beside weights, for resuming in this precision."""
    missing = [key for key in ("optimizer_step", "counters") if key not in counters]
    missing += [f"counters.{key}" for key in COUNTERS if key not in counters.get("counters", COUNTERS)]
    if counters.get("optimizer_step") and not moments.shapes():
        missing.append("the optimizer's moments")
    if engine.scaler is not None and not counters.get("scaler"):
        missing.append("the loss scaler")
    return missing


@torch.no_grad()
def restore_weights(engine: Engine, weights: TensorFile) -> None:
    """Restore weights, buffers and float32 masters."""
    from deepspeed.utils import safe_set_full_fp32_param

    for key, target in engine.module.state_dict().items():
        stored = weights.tensor(key)
        target.copy_(stored)
        if engine.is_partitioned and key in engine.parameters:
            # Sets the float32 master alone; the copy above sets the weight in the precision of training.
            safe_set_full_fp32_param(engine.parameters[key], stored.to(target.device))


@torch.no_grad()
def restore_optimizer(engine: Engine, moments: TensorFile, counters: dict[str, Any]) -> None:
    """Restore Adam's moments and step, the loss scaler and the counters."""
    from deepspeed.utils import safe_set_full_optimizer_state

    if moments.shapes():
        _create_moments(engine, counters["optimizer_step"])
        for key, (parameter, moment) in _moments(engine).items():
            value = moments.tensor(key)
            if engine.is_partitioned:
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)
            else:
                engine.inner_optimizer.state[parameter][moment].copy_(value)
    if engine.scaler is not None:
        for key, value in counters["scaler"].items():
            setattr(engine.scaler, key, value)
    engine.skips.bad_in_a_row = counters.get("bad_steps_in_a_row", 0)
    for key in COUNTERS:
        setattr(engine.counters, key, counters["counters"][key])
    # DeepSpeed finds the accumulation boundary by it; the number of micro-batches may differ from the saved run's.
    engine.counters.micro_steps = engine.counters.global_steps * engine.micro_batches


def _create_moments(engine: Engine, optimizer_step: float) -> None:
    """Create the state that Adam creates in its first step."""
    inner = engine.inner_optimizer
    for group in inner.param_groups:
        for parameter in group["params"]:
            is_on_device = group.get("fused") or group.get("capturable") or isinstance(inner, Muon)
            device = parameter.device if is_on_device else torch.device("cpu")
            inner.state[parameter] = {
                "step": torch.tensor(optimizer_step, dtype=torch.float32, device=device),
                **{m: torch.zeros_like(parameter, requires_grad=False) for m in engine.moment_names(parameter)},
            }
    if engine.is_partitioned:
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
