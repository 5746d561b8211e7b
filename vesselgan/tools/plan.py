"""What a run costs before a GPU is booked: parameters, operations, memory, disk, hours. Allocates nothing."""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from vesselgan.config import deepspeed, project
from vesselgan.config.compose import Command, compose
from vesselgan.config.schema import Plan
from vesselgan.core.errors import UsageError
from vesselgan.core.memory import format_bytes
from vesselgan.privacy.accountant import Mechanism, PatientCounts, paper_settings, plan_mechanism, summary_lines
from vesselgan.report import paper
from vesselgan.runtime.adam import num_moments
from vesselgan.tools import gpu_hours
from vesselgan.trainer.batch_plan import BatchPlan
from vesselgan.training.cost import (
    FLOAT32,
    StepSetup,
    largest_fitting_batch,
    meta_networks,
    num_muon_weights,
    step_cost,
)
from vesselgan.training.engines import batch_plan, engine_settings
from vesselgan.training.run import schedule_of
from vesselgan.training.scaling import MIB, StepTime, Traffic, num_trainable, step_time, traffic

GIB = 2**30
COLUMNS = "variant|precision|parameters|ranks|ZeRO|batch per GPU|TFLOP a step|peak|checkpoint|run|hours"
TIME_TERMS = ("compute", "update", "traffic", "load", "storage", "step")
TIME_COLUMNS = "variant|ranks|batch|compute ms|update|traffic|load|storage|step ms|slowest|patches/s|efficiency|"
TIME_COLUMNS += "gradients MiB|hours"


@dataclass(frozen=True)
class RankPlan:
    """One of `ranks`."""

    ranks: int
    batch_size: int
    """Of all ranks: train.batch_size, or one patch for each rank where there are more ranks than patches."""
    batch_per_rank: int
    batch_per_gpu: int
    """Patches in one micro-batch of the critic."""
    standing_gib: float
    """Between steps: weights, float32 masters, Adam's moments, the moving average, the batch."""
    peak_gib: float
    """The most during a step: tensors on a GPU, growth of the process on a CPU."""
    suggested_batch_per_rank: int | None
    """The most patches whose peak fits memory_gib; null: none was given, or not even one patch fits."""
    suggested_batch_per_gpu: int | None
    """The train.batch_per_gpu that goes with it."""
    step: StepTime
    """By the machine's rates."""
    patches_per_s: float
    """Of all ranks."""
    efficiency: float
    """Patches per second of this rank over those of a single rank with the same batch_per_rank."""
    traffic: Traffic
    hours: float | None
    """Of the run by the machine's rates; null if the machine is of another device."""


def plan(command: Command) -> None:
    """Print what the configuration costs: a table, or with --json the object that `costs` describes.

    With `variants=[...]` the object is {"variants": [what `costs` describes, one per name]}.
    """
    config = command.config
    configs = _configs(command)
    plans = [costs(variant_config) for variant_config in configs]
    if command.wants_json:
        print(json.dumps({"variants": plans} if config.variants else plans[0]))
        return
    print(_table([tuple(COLUMNS.split("|")), *(row for plan in plans for row in _rows(plan))]))
    machine = config.machine
    if machine.device == config.device:
        print(
            f"\nby the rates of {machine.description} ({machine.device}); yours: `vesselgan benchmark target=machine`"
        )
        print(_table([tuple(TIME_COLUMNS.split("|")), *(row for plan in plans for row in _time_rows(plan))]))
    if config.device == "cuda":
        shares = " or ".join(dict.fromkeys(f"{plan['share_of_peak']:g}" for plan in plans))
        print(f"\n{gpu_hours.NOTE.format(shares=shares)}")
        columns = ("variant", "steps", *gpu_hours.CARDS, f"paper, {paper.TABLE_2_DEVICE}")
        print(_table([columns, *map(_hours_row, plans)]))
    for plan in plans:
        for line in _privacy_lines(plan):
            print(line)
    if config.memory_gib is not None:
        for variant_config, plan in zip(configs, plans, strict=True):
            for rank_plan in plan["ranks"]:
                print(_advice(variant_config, rank_plan, config.memory_gib))


def costs(config: Plan) -> dict[str, Any]:
    """What one variant costs, as JSON:

    variant, width, precision, patch_shape, batch_size, device, zero_stage: as configured;
    parameters_generator, parameters_critic, parameters: trainable, as Table 2 counts;
    tflop_per_step: over all ranks, n_critic critic steps and a generator step, 10^12 operations (multiply-adds twice);
    checkpoint_gib: one checkpoint (float32 weights, buffers, Adam's moments, the moving average if there is one);
    run_gib: the most on disk at once, one being written and those of train.save_every_epochs included;
    steps: generator steps of the run; hours: of the run at step_seconds, null without it;
    hours_by_card: estimates for one GPU of each kind, at share_of_peak of its data sheet's rate; hours_paper: the
    paper's, null for other settings than its own;
    ranks: one RankPlan for each number of ranks. GiB are 2^30 bytes.
    A private variant adds what `_privacy` returns.
    """
    deepspeed_json = _deepspeed_json(config)
    rank_plans, flop = [], 0.0
    for ranks in config.ranks:
        rank_plan, rank_flop = _plan_rank(config, deepspeed_json, ranks)
        rank_plans.append(asdict(rank_plan))
        flop = rank_flop * ranks * config.train.batch_size / rank_plan.batch_size
    counts, checkpoint_bytes = _sizes(config)
    if config.variant.dp is None:
        steps, privacy = schedule_of(config, config.num_pairs).stop, {}
    else:
        mechanism, private_steps = _mechanism(config)
        steps, privacy = private_steps // config.variant.n_critic, _privacy(mechanism, private_steps)
    tflop_per_step = flop / 1e12
    for one in rank_plans if config.machine.device == config.device else ():
        one["hours"] = steps * one["step"]["step_ms"] / 3.6e6
    return {
        "variant": config.variant.name,
        "width": config.variant.width,
        "precision": config.variant.precision,
        "patch_shape": list(config.patch_shape),
        "batch_size": config.train.batch_size,
        "device": config.device,
        "zero_stage": deepspeed_json["zero_optimization"]["stage"],
        "parameters_generator": counts["generator"],
        "parameters_critic": counts.get("critic", 0),
        "parameters": sum(counts.values()),
        "tflop_per_step": tflop_per_step,
        "checkpoint_gib": checkpoint_bytes / GIB,
        "run_gib": (config.train.keep_last + _num_saved(config, steps) + 1) * checkpoint_bytes / GIB,
        "steps": steps,
        "hours": None if config.step_seconds is None else steps * config.step_seconds / 3600,
        "hours_by_card": gpu_hours.hours_by_card(config.variant, tflop_per_step=tflop_per_step, steps=steps),
        "share_of_peak": gpu_hours.share_of_peak(config.variant),
        "hours_paper": gpu_hours.paper_hours(config, steps=steps),
        "ranks": rank_plans,
        **privacy,
    }


def _mechanism(config: Plan) -> tuple[Mechanism, int]:
    """(the mechanism, private steps of the run) for patients with the same number of patches each."""
    patients = PatientCounts(config.num_pairs, config.num_patients, -(-config.num_pairs // config.num_patients))
    steps = schedule_of(config, config.num_pairs).stop
    return plan_mechanism(config.variant, patients, batch_size=config.train.batch_size, generator_steps=steps)


def _privacy(mechanism: Mechanism, steps: int) -> dict[str, Any]:
    """What `steps` private steps spend, as JSON:

    private_steps: what is accounted for, n_critic in each of the run's `steps`; unit, delta, noise_multiplier,
    sample_rate; epsilon_patch, epsilon_patient: of all private_steps by RDP at that delta; epsilon_prv: the other
    accountant's bound for the unit, null where it is no help; not_covered; privacy_lines: the same as text;
    paper_settings: see privacy.accountant.
    """
    spent = mechanism.to_json(steps)
    return {
        "epsilon_patch": mechanism.epsilon("patch", steps),
        "epsilon_patient": mechanism.epsilon("patient", steps),
        "epsilon_prv": mechanism.epsilon_prv(steps),
        "private_steps": steps,
        **{key: spent[key] for key in ("unit", "delta", "noise_multiplier", "sample_rate", "not_covered")},
        "privacy_lines": summary_lines(mechanism, steps),
        "paper_settings": paper_settings(),
    }


def _configs(command: Command) -> list[Plan]:
    """The configuration of each of `variants`, or the one."""
    if not command.config.variants:
        return [command.config]
    if any(override.startswith("variant=") for override in command.overrides):
        raise UsageError("variant and variants exclude each other: name one")
    named = [project.settings_of("plan", [f"variant={name}", *command.overrides]) for name in command.config.variants]
    return [compose("plan", above, below=below) for below, above in named]


def _deepspeed_json(config: Plan) -> dict[str, Any]:
    """configs/deepspeed/ds_<precision>.json, with zero_stage."""
    name, settings = deepspeed.read(None, config.variant.precision)
    settings = copy.deepcopy(settings)
    if config.zero_stage is not None:
        settings["zero_optimization"]["stage"] = config.zero_stage
    name = f"{name} with zero_stage={config.zero_stage}"
    deepspeed.check(name, settings)
    return deepspeed.complete(name, settings, config.variant.precision)


def _plan_rank(config: Plan, deepspeed_json: dict[str, Any], ranks: int) -> tuple[RankPlan, int]:
    """The plan of one rank, and the operations of its step."""
    if ranks > config.train.batch_size:
        config = copy.deepcopy(config)
        config.train.batch_size = ranks
    batch, has_average = batch_plan(config, ranks), config.variant.ema_decay is not None
    engine_settings(config.variant, batch, deepspeed_json)  # refuses what training does
    setup = StepSetup(config.variant, config.patch_shape, batch, deepspeed_json, config.device, has_average)
    cost = step_cost(setup)
    fit = None if config.memory_gib is None else largest_fitting_batch(setup, config.memory_gib * GIB)
    alone = replace(setup, batch=BatchPlan.of(batch.per_rank, None, ranks=1))
    step, step_alone = (
        step_time(config.machine, where, flop=cost.flop, num_workers=config.train.num_workers)
        for where in (setup, alone)
    )
    rank_plan = RankPlan(
        ranks=ranks,
        batch_size=batch.total,
        batch_per_rank=batch.per_rank,
        batch_per_gpu=batch.micro,
        standing_gib=cost.standing_bytes / GIB,
        peak_gib=cost.peak_bytes / GIB,
        suggested_batch_per_rank=fit.batch.per_rank if fit else None,
        suggested_batch_per_gpu=fit.batch.micro if fit else None,
        step=step,
        patches_per_s=1e3 * batch.total * config.variant.n_critic / step.step_ms,
        efficiency=step_alone.step_ms / step.step_ms,
        traffic=traffic(setup),
        hours=None,
    )
    return rank_plan, cost.flop


def _num_saved(config: Plan, steps: int) -> int:
    """Checkpoints that are kept for ever, one every save_every_epochs."""
    every = config.train.save_every_epochs
    return 0 if every is None else schedule_of(config, config.num_pairs).epoch_after(steps) // every


def _sizes(config: Plan) -> tuple[dict[str, int], int]:
    """Parameters of each network, bytes of one checkpoint."""
    variant = config.variant
    networks = meta_networks(variant, config.patch_shape)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    trainable = sum(num_trainable(network) for network in networks.values())
    stored = sum(value.numel() for network in networks.values() for value in network.state_dict().values())
    averaged = 0 if config.variant.ema_decay is None else counts["generator"]
    matrices = sum(num_muon_weights(variant, network) for network in networks.values())
    return counts, FLOAT32 * (stored + num_moments(trainable, matrices, variant.betas) + averaged)


def _rows(plan: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    hours = "" if plan["hours"] is None else f"{plan['hours']:.1f}"
    for rank_plan in plan["ranks"]:
        yield (
            *(plan["variant"], plan["precision"], f"{plan['parameters']:,}", rank_plan["ranks"], plan["zero_stage"]),
            *(rank_plan["batch_per_gpu"], f"{plan['tflop_per_step']:.2f}", format_bytes(rank_plan["peak_gib"] * GIB)),
            *(format_bytes(plan["checkpoint_gib"] * GIB), format_bytes(plan["run_gib"] * GIB), hours),
        )


def _time_rows(plan: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for rank_plan in plan["ranks"]:
        step = rank_plan["step"]
        yield (
            *(plan["variant"], rank_plan["ranks"], rank_plan["batch_size"]),
            *(f"{step[f'{term}_ms']:.0f}" for term in TIME_TERMS),
            *(step["slowest"], f"{rank_plan['patches_per_s']:.2f}", f"{rank_plan['efficiency']:.2f}"),
            f"{rank_plan['traffic']['gradient_bytes'] / MIB:.1f}",
            f"{rank_plan['hours']:.1f}",
        )


def _hours_row(plan: dict[str, Any]) -> tuple[Any, ...]:
    hours = ["-" if h is None else f"~{h:.1f}" for h in plan["hours_by_card"].values()]
    return (plan["variant"], f"{plan['steps']:,}", *hours, plan["hours_paper"] or "-")


def _table(rows: list[tuple[Any, ...]]) -> str:
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _privacy_lines(plan: dict[str, Any]) -> list[str]:
    """What a private variant spends, beside the paper's three settings; nothing for other variants."""
    if "privacy_lines" not in plan:
        return []
    lines = [*plan["privacy_lines"], "", "the paper's settings, epsilon per patch at delta 1/2350 (RDP):"]
    lines.append("noise multiplier  the paper says  its code counts  its code spends  fresh batches, as here")
    widths = {"noise_multiplier": 16, "claimed": 16, "counted": 17, "spent": 17, "ours": 24}
    for row in plan["paper_settings"]:
        lines.append("".join(f"{row[key]:.3g}".rjust(width) for key, width in widths.items()))
    return lines


def _advice(config: Plan, rank_plan: dict[str, Any], memory_gib: float) -> str:
    """What fits, in settings that training takes."""
    ranks, total = rank_plan["ranks"], config.train.batch_size
    fits, micro = rank_plan["suggested_batch_per_rank"], rank_plan["suggested_batch_per_gpu"]
    is_divisible = config.variant.penalty_reduction != "batch"
    head = f"{config.variant.name} on {ranks} rank{'s' if ranks > 1 else ''}, {memory_gib:g} GiB each"
    if fits is None:
        more = "ZeRO stage 1 or 2 on more ranks, " if is_divisible else ""
        return f"{head}: not even one patch fits; use {more}half precision, less width"
    if fits == rank_plan["batch_per_rank"]:
        return f"{head}: train.batch_per_gpu={micro} fits" if is_divisible else f"{head}: the batch fits"
    part = 1 if micro == fits else micro
    more_ranks = [n for n in range(1, total + 1) if total % n == 0 and total // n <= fits and total // n % part == 0]
    more = f"{more_ranks[0]} ranks or " if is_divisible and more_ranks else ""
    in_parts = f" with train.batch_per_gpu={micro}" if micro < fits else ""
    return f"{head}: {fits} patches fit{in_parts}; use {more}train.batch_size={fits * ranks}"
