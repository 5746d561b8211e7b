"""plan's step times against training itself, on one rank and on as many as share this machine."""

import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from vesselgan.config.compose import compose
from vesselgan.config.schema import Benchmark
from vesselgan.formats.run_dir import RunDir
from vesselgan.tools.benchmark import loader, machine
from vesselgan.tools.benchmark.interleave import run_process
from vesselgan.tools.plan import costs
from vesselgan.workflow.stage import module_command

LOG_EVERY, READINGS = 4, 3
"""Steps per reading of the clock, and readings; one before does not count."""


def run(config: Benchmark) -> dict[str, Any]:
    """The machine's rates, then per number of ranks the predicted terms, the measured step, and their ratio.

    Each number of ranks trains config.batch_size patches a step, by the real launcher, from shards in the page cache.
    """
    measured = machine.measure(config)
    ranks = sorted({1, measured.ranks_per_node})
    overrides = _overrides(config)
    shape, device = f"patch_shape={list(config.patch_shape)}".replace(" ", ""), f"device={measured.device}"
    plan = compose("plan", [*overrides, shape, device, f"ranks={ranks}".replace(" ", "")])
    plan.machine = measured
    rank_plans = {rank_plan["ranks"]: rank_plan for rank_plan in costs(plan)["ranks"]}
    results: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        loader.phantom_dataset(Path(folder) / "cohort" / "shards" / "gan" / "train", config)
        for number in tqdm(ranks, unit="run", disable=None):
            step_ms = _train(number, overrides, config, Path(folder))
            predicted = rank_plans[number]["step"]
            results[str(number)] = {
                "predicted": predicted,
                "measured_ms": step_ms,
                "predicted_over_measured": predicted["step_ms"] / step_ms["time/step_ms"],
            }
    return {
        "machine": asdict(measured),
        "batch_size": config.batch_size,
        "width": config.variant.width,
        "ranks": results,
    }


def _overrides(config: Benchmark) -> list[str]:
    variant = config.variant
    overrides = [f"variant={variant.name}", f"variant.width={variant.width}", f"variant.precision={variant.precision}"]
    return [*overrides, f"train.batch_size={config.batch_size}", "train.num_workers=0"]


def _train(ranks: int, overrides: list[str], config: Benchmark, folder: Path) -> dict[str, float]:
    """Median milliseconds of a step and of its phases, from the run's own metrics."""
    run_dir, steps = folder / f"run-{ranks}", LOG_EVERY * (READINGS + 1)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher]
    command += ["-m", *module_command("train_gan"), f"--run_dir={run_dir}", *overrides]
    command += [f"data.cohort_dir={folder / 'cohort'}", f"work_dir={folder}", f"train.max_steps={steps}"]
    command += [f"train.log_every={LOG_EVERY}", "train.image_every=1000000", "train.checkpoint_every=1000000"]
    command += [f"runtime.device={config.runtime.device}"]
    run_process(f"training on {ranks} ranks", command, config.threads)
    rows = RunDir(run_dir).metrics()[1:]
    names = [name for name in rows[0] if name.startswith("time/")]
    return {name: statistics.median(row[name] for row in rows) for name in names}
