"""What samples teach at equal compute: every recipe trains for the same seconds, then a U-Net learns from its samples.

Scores are Dice on the cohort's whole validation volumes; the test volumes stay unseen. Beside the recipes: U-Nets on
real patches and on real patches with each other's labels, and the best global threshold, which is fitted on validation
and so is scored on the training volumes.
"""

import hashlib
import json
import shlex
import statistics
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vesselgan.config.schema import Benchmark
from vesselgan.core.atomic_io import write_text
from vesselgan.core.console import log
from vesselgan.formats.run_dir import RunDir
from vesselgan.tools.benchmark.pipeline import Pipeline
from vesselgan.viz import plots

TURNS = 3
"""Probes of a step's seconds, each recipe's in turn."""
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
        config = self.config
        if config.cohort_dir is None and not (self.out / "phantom/cohort.json").is_file():
            self._pipeline.make_phantom([], [])
        seeds = range(config.seed, config.seed + config.num_seeds)
        rows = [self._kept({"source": "threshold"}, self._threshold)]
        rows += [self._kept({"source": "real", "seed": seed}, partial(self._real, seed, False)) for seed in seeds]
        shuffled = partial(self._real, config.seed, True)
        rows.append(self._kept({"source": "real, labels shuffled", "seed": config.seed}, shuffled))
        turns = [{recipe: self._probe(recipe, turn) for recipe in config.recipes} for turn in range(TURNS)]
        step_s = {recipe: statistics.median(turn[recipe] for turn in turns) for recipe in config.recipes}
        return rows + [
            self._kept(
                {"source": recipe, "seconds": seconds, "seed": seed},
                partial(self._trained, recipe, max(1, round(seconds / step_s[recipe])), step_s[recipe], seed),
            )
            for recipe in config.recipes
            for seconds in config.seconds
            for seed in seeds
        ]

    @property
    def _pipeline(self) -> Pipeline:
        folder = [] if self.config.cohort_dir is None else [f"data.cohort_dir={self.config.cohort_dir}"]
        return Pipeline(self.out, ["data=phantom", f"work_dir={self.out}", *folder], ["preset=demo"])

    def _threshold(self, name: str) -> dict[str, Any]:
        return self._pipeline.dice(name, "train", "evaluate=threshold")

    def _real(self, seed: int, is_shuffled: bool, name: str) -> dict[str, Any]:
        words = (f"unet.seed={seed}", f"data.shuffle_labels={str(is_shuffled).lower()}")
        return self._pipeline.dice_of_unet(name, SPLIT, "data.source=real", *words)

    def _trained(self, recipe: str, steps: int, step_s: float, seed: int, name: str) -> dict[str, Any]:
        run_dir = self.out / name
        self._pipeline.train_gan(run_dir, steps, *shlex.split(recipe), f"train.seed={seed}")
        sampling = self._pipeline.launch("generate", f"run={run_dir}", f"num_patches={self.config.num_samples}")
        learn = ("data.source=synthetic", f"synthetic={RunDir(run_dir).synthetic}", f"unet.seed={seed}")
        scores = self._pipeline.dice_of_unet(f"of-{name}", SPLIT, *learn)
        return {"steps": steps, "device_s": steps * step_s, "sampling_s": sampling, **scores}

    def _probe(self, recipe: str, turn: int) -> float:
        """The median seconds of a step, by the run's own log."""

        def measure(name: str) -> dict[str, Any]:
            return {"step_s": self._pipeline.seconds_of_step(self.out / name, *shlex.split(recipe))}

        return self._kept({"probe": recipe, "turn": turn}, measure)["step_s"]

    def _kept(self, facts: dict[str, Any], measure: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """The row of `measure`, made once for these facts, cohort and number of samples; its name stands for all."""
        whole = {**facts, "cohort": self.config.cohort_dir, "num_samples": self.config.num_samples}
        name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]
        path = self.out / f"{name}.row.json"
        if path.is_file():
            return json.loads(path.read_text())
        row = {"name": name, **whole, **measure(name)}
        write_text(path, json.dumps(row, indent=1) + "\n")
        numbers = [f"{key} {value:.3g}" for key, value in row.items() if isinstance(value, float)]
        log.info(f"{next(iter(facts.values()))}: {', '.join(numbers)}")
        return row


def _curves(table: pd.DataFrame) -> plots.Chart:
    """Dice over device seconds, a line per recipe, with the real patches' and the threshold's as level ones."""
    measured = table[table["device_s"].notna()]
    ends = np.array([0.0, float(measured["device_s"].max())])
    series = []
    for source, title in (("real", "real patches"), ("threshold", "threshold, training volumes")):
        level = float(table.loc[table["source"] == source, "all"].mean())
        series.append(plots.Series(title, ends, np.full(2, level)))
    for recipe, rows in measured.groupby("source", sort=False):
        means = rows.groupby("seconds")[["device_s", "all"]].mean()
        x, y = means["device_s"].to_numpy(float), means["all"].to_numpy(float)
        series.append(plots.Series(textwrap.shorten(str(recipe), 44, placeholder=" ..."), x, y))
    axes = {"x_label": "device seconds of training", "y_label": "Dice, validation volumes"}
    return plots.lines(series, **axes, title="What samples teach", middle=100)
