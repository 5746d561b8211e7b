"""What samples teach at equal compute: every recipe trains for the same seconds, then a U-Net learns from its samples.

Scores are Dice on the cohort's whole validation volumes; the test volumes stay unseen. Beside the recipes: a U-Net on
real patches, and the best global threshold, which is fitted on validation and so is scored on the training volumes.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vesselgan.config.schema import Benchmark
from vesselgan.core.atomic_io import write_text
from vesselgan.core.console import log
from vesselgan.core.names import path_in
from vesselgan.formats.run_dir import RunDir
from vesselgan.tools.benchmark.pipeline import Pipeline
from vesselgan.viz import plots

PROBE_STEPS = (5, 25)
"""Two short trainings, whose difference is the time of a step without what a start and an end take."""
SPLIT = "validation"


def run(config: Benchmark) -> None:
    """Write recipes.json, recipes.csv and dice.svg into config.out; what was measured there already is kept."""
    out = Path(config.out or "work/utility")
    out.mkdir(parents=True, exist_ok=True)
    rows = _Recipes(config, out).rows()
    write_text(out / "recipes.json", json.dumps(rows, indent=1) + "\n")
    table = pd.DataFrame(rows)
    table.to_csv(out / "recipes.csv", index=False)
    write_text(out / "dice.svg", _curves(table).svg)
    print(table.round(3).to_string(index=False))


@dataclass(frozen=True)
class _Recipes:
    config: Benchmark
    out: Path

    def rows(self) -> list[dict[str, Any]]:
        config, pipeline = self.config, self._pipeline
        if config.cohort_dir is None and not (self.out / "phantom/cohort.json").is_file():
            pipeline.make_phantom([], [])
        seeds = range(config.seed, config.seed + config.num_seeds)
        rows = [self._kept("threshold", lambda: pipeline.dice("threshold", "train", "evaluate=threshold"), {})]
        for seed in seeds:
            learn = ("data.source=real", f"unet.seed={seed}")
            name = f"real-{seed}"
            rows.append(self._kept(name, lambda n=name, w=learn: pipeline.dice_of_unet(n, SPLIT, *w), {"seed": seed}))
        for number, recipe in enumerate(config.recipes):
            for seconds in config.seconds:
                rows += [self._trained(number, recipe, seconds, seed) for seed in seeds]
        return rows

    @property
    def _pipeline(self) -> Pipeline:
        folder = [] if self.config.cohort_dir is None else [f"data.cohort_dir={self.config.cohort_dir}"]
        return Pipeline(self.out, ["data=phantom", f"work_dir={self.out}", *folder], ["preset=demo"])

    def _trained(self, number: int, recipe: str, seconds: float, seed: int) -> dict[str, Any]:
        name = f"recipe{number}-{seconds:g}s-{seed}"

        def measure() -> dict[str, Any]:
            step_s, start_s = self._step_seconds(number, recipe)
            run_dir, steps = path_in(self.out, name), max(1, round(seconds / step_s))
            words = (*shlex.split(recipe), f"train.seed={seed}", f"train.max_steps={steps}")
            used = self._train(run_dir, *words) - start_s
            sampling = self._pipeline.launch("generate", f"run={run_dir}", f"num_patches={self.config.num_samples}")
            learn = ("data.source=synthetic", f"synthetic={RunDir(run_dir).synthetic}", f"unet.seed={seed}")
            scores = self._pipeline.dice_of_unet(f"of-{name}", SPLIT, *learn)
            return {"steps": steps, "device_s": used, "sampling_s": sampling, **scores}

        return self._kept(name, measure, {"recipe": recipe, "seconds": seconds, "seed": seed})

    def _train(self, run_dir: Path, *words: str) -> float:
        return self._pipeline.launch("train_gan", "--run_dir", str(run_dir), *words, *self._pipeline.data)

    def _step_seconds(self, number: int, recipe: str) -> tuple[float, float]:
        """(device seconds of a step, of start and end)."""

        def measure() -> dict[str, Any]:
            words = (*shlex.split(recipe), "train.checkpoint_every=1000000", "train.image_every=1000000")
            few, many = (
                self._train(path_in(self.out, f"probe{number}-{steps}"), *words, f"train.max_steps={steps}")
                for steps in PROBE_STEPS
            )
            step_s = max(many - few, 1e-3) / (PROBE_STEPS[1] - PROBE_STEPS[0])
            return {"step_s": step_s, "start_s": max(0.0, few - PROBE_STEPS[0] * step_s)}

        kept = self._kept(f"probe{number}", measure, {"recipe": recipe})
        return kept["step_s"], kept["start_s"]

    def _kept(self, name: str, measure: Any, facts: dict[str, Any]) -> dict[str, Any]:
        """The measurement of these facts, from its file if it was made before."""
        path = path_in(self.out, f"{name}.row.json")
        if path.is_file():
            row = json.loads(path.read_text())
            if all(row.get(key) == value for key, value in facts.items()):
                return row
        row = {"name": name} | facts | measure()
        write_text(path, json.dumps(row, indent=1) + "\n")
        log.info(
            f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items() if isinstance(value, float))
        )
        return row


def _curves(table: pd.DataFrame) -> plots.Chart:
    """Dice over device seconds, a line per recipe, with the real patches' and the threshold's as level ones."""
    measured = table[table["recipe"].notna()] if "recipe" in table else table.iloc[:0]
    ends = np.array([0.0, float(measured["device_s"].max()) if len(measured) else 1.0])
    levels = {
        "real patches": table[table["name"].str.startswith("real")],
        "threshold, training volumes": table[table["name"] == "threshold"],
    }
    series = [plots.Series(name, ends, np.full(2, float(rows["all"].mean()))) for name, rows in levels.items()]
    for recipe, rows in measured.groupby("recipe", sort=False):
        means = rows.groupby("seconds")[["device_s", "all"]].mean()
        x, y = means["device_s"].to_numpy(float), means["all"].to_numpy(float)
        series.append(plots.Series(str(recipe), x, y))
    axes = {"x_label": "device seconds of training", "y_label": "Dice, validation volumes"}
    return plots.lines(series, **axes, title="What samples teach", middle=100)
