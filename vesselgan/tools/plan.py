"""What a run costs, before anything is booked: parameters, work, memory, disk, hours. Allocates nothing."""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from vesselgan.config import deepspeed
from vesselgan.config.compose import Command, compose
from vesselgan.config.schema import Plan
from vesselgan.data.sampler import steps_per_epoch
from vesselgan.privacy.accountant import Mechanism, paper_settings, plan_mechanism, summary_lines
from vesselgan.runtime.adam import moment_names
from vesselgan.trainer.checkpointer import steps_of
from vesselgan.training.cost import FLOAT32, fitting, players_of, step_cost
from vesselgan.training.run import settings_of
from vesselgan.training.scaling import MIB, StepTime, Traffic, num_trainable, step_time, traffic

GIB = 2**30
COLUMNS = ("variant", "precision", "parameters", "ranks", "ZeRO", "batch per GPU", "TFLOP a step", "peak GiB")
COLUMNS += ("checkpoint GiB", "run GiB", "hours")
TIME_COLUMNS = ("variant", "ranks", "batch", "compute ms", "update", "traffic", "load", "storage", "step ms", "slowest")
TIME_COLUMNS += ("patches/s", "efficiency", "sent MiB", "of it linear", "as factors")


@dataclass(frozen=True)
class Share:
    """What one of `ranks` carries."""

    ranks: int
    batch_size: int
    """Of all ranks: what was asked, or a patch for each rank where there are more ranks than patches."""
    batch_per_rank: int
    batch_per_gpu: int
    """Patches that its critic sees at a time."""
    standing_gib: float
    """Between steps: weights, float32 masters, Adam's moments, the moving average, the batch."""
    peak_gib: float
    """The most during a step: tensors on a GPU, growth of the process on a CPU."""
    suggested_batch_per_rank: int | None
    """The largest share of the batch whose peak fits memory_gib; null: not even one patch does, or none was given."""
    suggested_batch_per_gpu: int | None
    """The train.batch_per_gpu that goes with it."""
    step: StepTime
    """By the machine's rates."""
    patches_per_s: float
    """Of all ranks."""
    efficiency: float
    """Of a rank's patches per second, to one rank's that takes as many at a time."""
    traffic: Traffic


def plan(command: Command) -> None:
    """Print what the configuration costs: a table, or with --json the object that `costs` describes.

    With `variants=[...]` one object more: {"variants": [what `costs` describes, one per name]}.
    """
    facts = [costs(config) for config in _each(command)]
    if command.wants_json:
        print(json.dumps({"variants": facts} if command.config.variants else facts[0]))
        return
    print(_table([COLUMNS, *(row for fact in facts for row in _rows(fact))]))
    machine = command.config.machine
    print(
        f"\nby the rates of {machine.description} ({machine.device}; launch/benchmark.py target=machine takes others):"
    )
    print(_table([TIME_COLUMNS, *(row for fact in facts for row in _time_rows(fact))]))
    for line in (line for fact in facts for line in _privacy_lines(fact)):
        print(line)
    for fact in facts:
        for share in fact["ranks"] if command.config.memory_gib is not None else ():
            print(_advice(fact, share, command.config.memory_gib))


def costs(config: Plan) -> dict[str, Any]:
    """What one variant costs, as JSON:

    variant, width, precision, patch_shape, batch_size, device, zero_stage: what was asked;
    parameters_generator, parameters_critic, parameters: trainable, as Table 2 counts;
    tflop_per_step: over all ranks, n_critic critic steps and a generator step, 10^12 operations (multiply-adds twice);
    checkpoint_gib: one checkpoint (float32 weights, buffers, Adam's moments, the moving average if there is one);
    run_gib: all that stand at once, one of them being written, and those of train.save_every_epochs;
    steps: generator steps of the run; hours: of the run at step_seconds, null without it;
    ranks: one Share for each number of ranks. GiB are 2^30 bytes.
    A private variant has what `_privacy` tells beside these.
    """
    raw = _json_settings(config)
    shares, work = [], 0.0
    for ranks in config.ranks:
        share, flop = _share(config, raw, ranks)
        shares.append(asdict(share))
        work = flop * config.train.batch_size / share.batch_size
    counts, checkpoint_bytes = _sizes(config)
    private = None if config.variant.dp is None else _mechanism(config)
    steps = steps_of(config, config.num_pairs) if private is None else private[1] // config.variant.n_critic
    hours = None if config.step_seconds is None else steps * config.step_seconds / 3600
    return {
        "variant": config.variant.name,
        "width": config.variant.width,
        "precision": config.variant.precision,
        "patch_shape": list(config.patch_shape),
        "batch_size": config.train.batch_size,
        "device": config.device,
        "zero_stage": raw["zero_optimization"]["stage"],
        "parameters_generator": counts["generator"],
        "parameters_critic": counts["critic"],
        "parameters": sum(counts.values()),
        "tflop_per_step": work / 1e12,
        "checkpoint_gib": checkpoint_bytes / GIB,
        "run_gib": (config.train.keep_last + _num_kept(config, steps) + 1) * checkpoint_bytes / GIB,
        "steps": steps,
        "hours": hours,
        "ranks": shares,
        **({} if private is None else _privacy(*private)),
    }


def _mechanism(config: Plan) -> tuple[Mechanism, int]:
    """(how the critic's steps are made private, how many the run takes), patients having as many patches each."""
    return plan_mechanism(
        config.variant,
        batch_size=config.train.batch_size,
        num_patches=config.num_pairs,
        num_patients=config.num_patients,
        patches_per_patient=-(-config.num_pairs // config.num_patients),
        generator_steps=steps_of(config, config.num_pairs),
    )


def _privacy(mechanism: Mechanism, steps: int) -> dict[str, Any]:
    """What `steps` steps of the critic spend, as JSON:

    critic_steps: what is accounted for, n_critic in each of the run's `steps`, which are the generator's and spend
    nothing; unit, delta, noise_multiplier, sample_rate; epsilon_patch, epsilon_patient: of all critic_steps by RDP at
    that delta; epsilon_prv: the other accountant's bound for the unit, null where it is no help; not_covered;
    privacy_lines: the same in words; paper_settings: see privacy.accountant.
    """
    told = mechanism.to_json(steps)
    return {
        "epsilon_patch": mechanism.epsilon("patch", steps),
        "epsilon_patient": mechanism.epsilon("patient", steps),
        "epsilon_prv": mechanism.epsilon_prv(steps),
        "critic_steps": steps,
        **{key: told[key] for key in ("unit", "delta", "noise_multiplier", "sample_rate", "not_covered")},
        "privacy_lines": summary_lines(mechanism, steps),
        "paper_settings": paper_settings(),
    }


def _each(command: Command) -> list[Plan]:
    """The configuration for each of `variants`, or the one."""
    if not command.config.variants:
        return [command.config]
    others = [word for word in command.words if word.split("=")[0] not in ("variant", "variants")]
    return [compose("plan", [f"variant={name}", *others]) for name in command.config.variants]


def _json_settings(config: Plan) -> dict[str, Any]:
    """configs/deepspeed/ds_<precision>.json, with the stage that was asked for."""
    name, raw = deepspeed.read(None, config.variant.precision)
    raw = copy.deepcopy(raw)
    if config.zero_stage is not None:
        raw["zero_optimization"]["stage"] = config.zero_stage
    deepspeed.check(f"{name} with zero_stage={config.zero_stage}", raw)
    return raw


def _share(config: Plan, raw: dict[str, Any], ranks: int) -> tuple[Share, int]:
    """One rank's share, and the operations of all."""
    if ranks > config.train.batch_size:
        config = copy.deepcopy(config)
        config.train.batch_size = ranks
    settings, shape = settings_of(config, raw, ranks), config.patch_shape
    batch_per_rank = config.train.batch_size // ranks
    has_average = config.train.ema_decay is not None
    rank = {"batch_per_rank": batch_per_rank, "ranks": ranks, "device": config.device, "has_average": has_average}
    cost = step_cost(config.variant, shape, settings, **rank)
    found = None
    if config.memory_gib is not None:
        limit = config.memory_gib * GIB
        found = fitting(config.variant, shape, settings, **rank, limit_bytes=limit)
    sent = traffic(config.variant, tuple(shape), settings, batch_per_rank=batch_per_rank, ranks=ranks)
    alone = traffic(config.variant, tuple(shape), settings, batch_per_rank=batch_per_rank, ranks=1)
    step, single = (_time(config, cost.flop, batch_per_rank, *way) for way in ((sent, ranks), (alone, 1)))
    share = Share(
        ranks=ranks,
        batch_size=config.train.batch_size,
        batch_per_rank=batch_per_rank,
        batch_per_gpu=settings["critic"]["train_micro_batch_size_per_gpu"],
        standing_gib=cost.standing_bytes / GIB,
        peak_gib=cost.peak_bytes / GIB,
        suggested_batch_per_rank=found.batch_per_rank if found else None,
        suggested_batch_per_gpu=found.batch_per_gpu if found else None,
        step=step,
        patches_per_s=1e3 * config.train.batch_size * config.variant.n_critic / step.step_ms,
        efficiency=single.step_ms / step.step_ms,
        traffic=sent,
    )
    return share, cost.flop * ranks


def _time(config: Plan, flop: int, batch_per_rank: int, sent: Traffic, ranks: int) -> StepTime:
    variant = config.variant
    numbers = {name: num_trainable(network) for name, network in players_of(variant, config.patch_shape).items()}
    return step_time(
        config.machine,
        sent,
        ranks=ranks,
        flop=flop,
        # What ZeRO gathers it has stepped in parts.
        num_updated=(variant.n_critic * numbers["critic"] + numbers["generator"]) / (ranks if sent.weight_bytes else 1),
        num_pairs=batch_per_rank * variant.n_critic,
        voxels=math.prod(config.patch_shape),
        num_workers=config.train.num_workers,
    )


def _num_kept(config: Plan, steps: int) -> int:
    """Checkpoints that stay for good, one every save_every_epochs."""
    every = config.train.save_every_epochs
    epochs = steps * config.variant.n_critic // steps_per_epoch(config.num_pairs, config.train.batch_size)
    return 0 if every is None else epochs // every


def _sizes(config: Plan) -> tuple[dict[str, int], int]:
    """Parameters of each player, bytes of one checkpoint."""
    variant = config.variant
    networks = players_of(variant, config.patch_shape)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    num_trainable = sum(p.numel() for network in networks.values() for p in network.parameters() if p.requires_grad)
    stored = sum(value.numel() for network in networks.values() for value in network.state_dict().values())
    averaged = 0 if config.train.ema_decay is None else counts["generator"]
    return counts, FLOAT32 * (stored + len(moment_names(variant.betas)) * num_trainable + averaged)


def _rows(fact: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    hours = "" if fact["hours"] is None else f"{fact['hours']:.1f}"
    for share in fact["ranks"]:
        row = (fact["variant"], fact["precision"], f"{fact['parameters']:,}", share["ranks"], fact["zero_stage"])
        row += (share["batch_per_gpu"], f"{fact['tflop_per_step']:.2f}", f"{share['peak_gib']:.2f}")
        yield (*row, f"{fact['checkpoint_gib']:.2f}", f"{fact['run_gib']:.2f}", hours)


def _time_rows(fact: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for share in fact["ranks"]:
        step, sent = share["step"], share["traffic"]
        terms = (f"{step[f'{name}_ms']:.0f}" for name in ("compute", "update", "traffic", "load", "storage", "step"))
        row = (fact["variant"], share["ranks"], share["batch_size"], *terms, step["slowest"])
        row += (f"{share['patches_per_s']:.2f}", f"{share['efficiency']:.2f}")
        sizes = ("gradient_bytes", "linear_bytes", "linear_factor_bytes")
        yield (*row, *(f"{sent[size] / MIB:.1f}" for size in sizes))


def _table(rows: list[tuple[Any, ...]]) -> str:
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _privacy_lines(fact: dict[str, Any]) -> list[str]:
    """What a private variant spends, and the paper's three settings beside it; nothing for the others."""
    if "privacy_lines" not in fact:
        return []
    lines = [*fact["privacy_lines"], "", "the paper's settings, epsilon per patch at delta 1/2350 (RDP):"]
    lines.append("noise multiplier  the paper says  its code counts  its code spends  fresh batches, as here")
    for row in fact["paper_settings"]:
        cells = [row[key] for key in ("noise_multiplier", "claimed", "counted", "spent", "ours")]
        lines.append(
            "".join(f"{cell:.3g}".rjust(width) for cell, width in zip(cells, (16, 16, 17, 17, 24), strict=True))
        )
    return lines


def _advice(fact: dict[str, Any], share: dict[str, Any], memory_gib: float) -> str:
    where = f"{fact['variant']} on {share['ranks']} rank{'s' if share['ranks'] > 1 else ''}, {memory_gib:g} GiB each"
    fits, micro = share["suggested_batch_per_rank"], share["suggested_batch_per_gpu"]
    if fits is None:
        return f"{where}: not even one patch fits; take ZeRO stage 1 or 2 on more ranks, half precision, less width"
    if fits < share["batch_per_rank"]:
        more = -(-fact["batch_size"] // fits)
        return f"{where}: {fits} patches fit, so {more} ranks or train.batch_size={fits * share['ranks']}"
    return f"{where}: train.batch_per_gpu={micro} fits"
