"""Steps of the real training loop on this rank, with accidents on request; what the engines hold afterwards."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from safetensors.torch import save_file
from torch import Tensor
from torch.profiler import record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vesselgan.config.compose import compose
from vesselgan.config.schema import TrainGan
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.runtime.distributed import World
from vesselgan.runtime.engine import Engine, build
from vesselgan.runtime.noise import NoiseSampler
from vesselgan.training.engines import batch_plan, engine_settings
from vesselgan.training.gan import critic_step, train

BETA2 = 0.9


def run(case: dict[str, Any], start: dict[str, Tensor], world: World, out: Path) -> dict[str, Any]:
    """Per step what was logged and what the engines count; rank 0 writes float32 weights, gradients and buffers."""
    config = compose("train_gan", case["words"])
    batch, variant = config.train.batch_size, config.variant
    if batch < world.size:
        return {"steps": []}
    share = batch // world.size
    mine = start["real"][:, world.rank * share : (world.rank + 1) * share]
    engines = {network: engine(network, case, config, start, world) for network in ("critic", "generator")}
    draws = NoiseSampler(
        config.train.seed, batch, variant.latent_size, batch_plan(config, world.size).slice_of(world.rank)
    )
    before = {network: buffers_and_weights(module) for network, module in engines.items()}
    steps, critic_losses = [], []
    batches = accidents(mine, case, world)
    updates = train(*engines.values(), batches, draws, variant, range(case["steps"]), record_function, critic_step)
    disturb_gradient(engines, case, world)
    for done, record in counting(updates, case, sent := []):
        flat = {name: value.item() for scalars in record for name, value in scalars.items()}
        counts = {f"{network}_{key}": value for network, e in engines.items() for key, value in counted(e).items()}
        steps.append(flat | counts)
        critic_losses += [scalars["loss/critic"].item() for scalars in record if "loss/critic" in scalars]
        if done == 1:
            first = gradients(engines)
    weights = {f"{network}/{key}": value for network, e in engines.items() for key, value in full_weights(e).items()}
    if world.is_main:
        save_file(weights, f"{out}.weights.safetensors")
        save_file(first, f"{out}.gradients.safetensors")
    after = {network: buffers_and_weights(module) for network, module in engines.items()}
    return {"steps": steps, "critic_losses": critic_losses, "before": before, "after": after, "sent": sent}


class Collectives(TorchDispatchMode):
    """What this rank hands to the others: [name of the call, bytes], in order."""

    def __init__(self, sent: list[list[Any]]) -> None:
        super().__init__()
        self.sent = sent

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            largest = max((leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, Tensor)), default=0)
            self.sent.append([func._opname, largest])
        return func(*args, **(kwargs or {}))


def counting(updates: Iterator[Any], case: dict[str, Any], sent: list[list[Any]]) -> Iterator[Any]:
    """The same steps; where the case says so, the second one's collective calls go into `sent`."""
    for number in range(case["steps"]):
        with Collectives(sent) if case.get("count_calls") and number == 1 else nullcontext():
            step = next(updates)
        yield step


def engine(network: str, case: dict[str, Any], config: TrainGan, start: dict[str, Tensor], world: World) -> Engine:
    variant, shape = config.variant, tuple(start["real"].shape[3:])
    if network == "critic":
        module, rate = Critic(shape, variant.width, variant.critic_norm), variant.learning_rate_critic
    else:
        module, rate = Generator(shape, variant.width, variant.latent_size), variant.learning_rate_generator
    own = {key.removeprefix(f"{network}/"): value.clone() for key, value in start.items() if key.startswith(network)}
    if world.rank > 0:
        # Nothing may hang on ranks that start alike.
        own = {key: value + 1 for key, value in own.items()}
    module.load_state_dict(own)
    raw = {"zero_optimization": {"stage": case["stage"]}, "gradient_clipping": 0.0}
    if variant.precision != "fp32":
        raw[variant.precision] = {"enabled": True}
    if variant.precision == "fp16":
        raw["fp16"] |= {"hysteresis": 1} | case["fp16"]
    settings = engine_settings(config.variant, batch_plan(config, world.size), raw)[network]
    return build(network, module, learning_rate=rate, betas=variant.betas, settings=settings, world=world)


def accidents(mine_PNCXYZ: Tensor, case: dict[str, Any], world: World) -> Iterator[Tensor]:
    """This rank's patches in turn; on the last rank with a NaN voxel where the case says so."""
    for position in range(10**6):
        patch_NCXYZ = mine_PNCXYZ[position % len(mine_PNCXYZ)].clone()
        if position in case.get("nan_in_input", []) and is_last(world):
            patch_NCXYZ[-1, 0, 3, 2, 1] = torch.nan
        yield patch_NCXYZ


def disturb_gradient(engines: dict[str, Engine], case: dict[str, Any], world: World) -> None:
    """Make one element of one gradient bad in the named backwards (0, 1, ...) of a network, on the last rank."""
    bad = case.get("bad_gradient")
    if bad is None or not is_last(world):
        return
    seen = [0]

    def disturb(gradient: Tensor) -> Tensor:
        seen[0] += 1
        if seen[0] - 1 not in bad["backwards"]:
            return gradient
        gradient = gradient.clone()
        gradient.view(-1)[0] = float(bad["value"])
        return gradient

    next(iter(engines[bad["network"]].parameters.values())).register_hook(disturb)


def is_last(world: World) -> bool:
    return world.rank == world.size - 1


def counted(engine: Engine) -> dict[str, float]:
    inner = [state for state in engine.inner_optimizer.state.values() if state]
    return {
        "scale": engine.loss_scale,
        "skipped_total": engine.skipped_steps,
        "bad_in_a_row": engine.skips.bad_in_a_row,
        "optimizer_steps": float(inner[0]["step"]) if inner else 0.0,
        "weight_sum": sum(p.detach().double().abs().sum().item() for p in engine.module.parameters()),
    }


def full_weights(engine: Engine) -> dict[str, Tensor]:
    """Float32 masters."""
    if not engine.is_partitioned:
        return {key: p.detach().clone() for key, p in engine.parameters.items()}
    return {key: safe_get_full_fp32_param(p).clone() for key, p in engine.parameters.items()}


def gradients(engines: dict[str, Engine]) -> dict[str, Tensor]:
    """Sizes of the first gradients, unscaled, averaged over ranks: Adam's second moment is (1 - 0.9) g^2."""
    found = {}
    for network, engine in engines.items():
        has_stepped = any(engine.inner_optimizer.state.values())
        for key, parameter in engine.parameters.items() if has_stepped else ():
            if engine.is_partitioned:
                moment = safe_get_full_optimizer_state(parameter, "exp_avg_sq")
            else:
                moment = engine.inner_optimizer.state[parameter]["exp_avg_sq"]
            found[f"{network}/{key}"] = (moment / 0.1).sqrt()
    return found


def buffers_and_weights(engine: Engine) -> dict[str, list[float]]:
    """A number for every tensor that tells it from others: equal on two ranks when the tensors are."""
    return {
        key: [value.double().sum().item(), value.double().square().sum().item(), value.reshape(-1)[-1].item()]
        for key, value in engine.module.state_dict().items()
    }
