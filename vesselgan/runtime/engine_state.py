"""What an engine remembers between two steps, taken out of DeepSpeed and put back exactly.

Weights and Adam's moments in float32 and whole, whatever the ZeRO stage and the number of ranks; Adam's step count, the
loss scaler and DeepSpeed's counters as JSON. Stage 3 does not restore exactly and is refused with the JSON.
"""

from typing import Any

import torch

from vesselgan.runtime.engine import Engine
from vesselgan.runtime.tensor_files import Part, TensorFile, part_of

SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
COUNTERS = ("global_steps", "skipped_steps")


def weights_of(engine: Engine) -> dict[str, Part]:
    """Weights and buffers by name; fetching a part is a collective call."""
    from deepspeed.utils import safe_get_full_fp32_param

    parts = {}
    for key, value in engine.module.state_dict().items():
        parameter = engine.parameters.get(key)
        is_master = parameter is not None and engine.is_partitioned
        parts[key] = part_of(value, (lambda p=parameter: safe_get_full_fp32_param(p)) if is_master else None)
    return parts


def moments_of(engine: Engine) -> dict[str, Part]:
    """Adam's moments as `<parameter>/<moment>`, none before the first step; fetching is a collective call."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if not any(engine.inner_optimizer.state.values()):
        return {}
    parts = {}
    for key, parameter in engine.parameters.items():
        for moment in engine.moment_names:
            if engine.is_partitioned:
                fetch = lambda p=parameter, m=moment: safe_get_full_optimizer_state(p, m)  # noqa: E731
                parts[f"{key}/{moment}"] = part_of(parameter, fetch)
            else:
                parts[f"{key}/{moment}"] = part_of(engine.inner_optimizer.state[parameter][moment])
    return parts


def num_bytes_of(engine: Engine) -> int:
    """What weights, buffers and moments take on disk, also before the first step."""
    state = sum(part_of(value).num_bytes for value in engine.module.state_dict().values())
    return state + len(engine.moment_names) * sum(
        part_of(parameter).num_bytes for parameter in engine.parameters.values()
    )


def mechanics_of(engine: Engine) -> dict[str, Any]:
    """What DeepSpeed and Adam count, as JSON."""
    states = [state for state in engine.inner_optimizer.state.values() if state]
    scaler = engine.scaler
    return {
        "optimizer_step": float(states[0]["step"]) if states else 0.0,
        "scaler": {key: getattr(scaler, key) for key in SCALER_FIELDS if hasattr(scaler, key)} if scaler else None,
        "counters": {key: int(getattr(engine.counters, key)) for key in COUNTERS},
        "bad_steps_in_a_row": engine.skips.bad_in_a_row,
    }


def differing_keys(engine: Engine, weights: TensorFile, moments: TensorFile | None) -> list[str]:
    """Tensors that the files and the engine do not share, or share in another shape, in words."""
    wanted = {key: tuple(value.shape) for key, value in engine.module.state_dict().items()}
    lines = _differing(weights.shapes(), wanted)
    if moments is not None and moments.shapes():
        wanted = {f"{key}/{m}": tuple(p.shape) for key, p in engine.parameters.items() for m in engine.moment_names}
        # A first moment that was kept for beta1 = 0 is a gradient of the past: no step would look at it.
        found = {key: shape for key, shape in moments.shapes().items() if key.split("/")[-1] in engine.moment_names}
        lines += [f"optimizer {line}" for line in _differing(found, wanted)]
    return lines


def _differing(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> list[str]:
    lines = [f"{key} (only in the checkpoint)" for key in sorted(found.keys() - wanted.keys())]
    lines += [f"{key} (not in the checkpoint)" for key in sorted(wanted.keys() - found.keys())]
    both = sorted(found.keys() & wanted.keys())
    return lines + [f"{k} {list(found[k])} -> {list(wanted[k])}" for k in both if found[k] != wanted[k]]


def missing_mechanics(engine: Engine, told: dict[str, Any], moments: TensorFile) -> list[str]:
    """What a run of this precision needs beside weights and the checkpoint lacks, in words."""
    missing = [key for key in ("optimizer_step", "counters") if key not in told]
    missing += [f"counters.{key}" for key in COUNTERS if key not in told.get("counters", COUNTERS)]
    if told.get("optimizer_step") and not moments.shapes():
        missing.append("the optimizer's moments")
    if engine.scaler is not None and not told.get("scaler"):
        missing.append("the loss scaler")
    return missing


@torch.no_grad()
def restore_weights(engine: Engine, weights: TensorFile) -> None:
    """Weights and buffers, the float32 masters too."""
    from deepspeed.utils import safe_set_full_fp32_param

    for key, target in engine.module.state_dict().items():
        stored = weights.tensor(key)
        target.copy_(stored)
        if engine.is_partitioned and key in engine.parameters:
            # This sets the float32 master only, the copy above only what computes.
            safe_set_full_fp32_param(engine.parameters[key], stored.to(target.device))


@torch.no_grad()
def restore_optimizer(engine: Engine, moments: TensorFile, told: dict[str, Any]) -> None:
    """Adam's moments and step, the loss scaler, the counters: the next step is the unbroken run's."""
    from deepspeed.utils import safe_set_full_optimizer_state

    if moments.shapes():
        _make_moments(engine, told["optimizer_step"])
        for key, parameter in engine.parameters.items():
            for moment in engine.moment_names:
                value = moments.tensor(f"{key}/{moment}")
                if engine.is_partitioned:
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)
                else:
                    engine.inner_optimizer.state[parameter][moment].copy_(value)
    if engine.scaler is not None:
        for key, value in told["scaler"].items():
            setattr(engine.scaler, key, value)
    engine.skips.bad_in_a_row = told.get("bad_steps_in_a_row", 0)
    for key in COUNTERS:
        setattr(engine.counters, key, told["counters"][key])
    # By these DeepSpeed tells which turn of an update is the last; how many there are may differ from the run's before.
    engine.counters.micro_steps = engine.counters.global_steps * engine.micro_batches


def _make_moments(engine: Engine, optimizer_step: float) -> None:
    """Adam makes its state in the first step; a restored run needs it before."""
    inner = engine.inner_optimizer
    for group in inner.param_groups:
        for parameter in group["params"]:
            on_device = parameter.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
            inner.state[parameter] = {
                "step": torch.tensor(optimizer_step, dtype=torch.float32, device=on_device),
                **{moment: torch.zeros_like(parameter, requires_grad=False) for moment in engine.moment_names},
            }
    if engine.is_partitioned:
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
