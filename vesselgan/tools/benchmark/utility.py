"""What samples teach at equal compute: every recipe trains for the same seconds, then a U-Net learns from its samples.

Scores are Dice on the cohort's whole validation volumes; the test volumes stay unseen. Beside the recipes: U-Nets on
real patches and on real patches with each other's labels, and the best global threshold. It is fitted on the very
volumes that it is scored on, where no threshold does better: a stricter control than one that is fitted elsewhere.

Steps are chosen from short probes of each recipe. What they took is measured: `device_s` is the wall time of the steps
by the training's own log, on a GPU as on a CPU, without start-up, checkpoints and sample images, over all sessions of a
run that was stopped. It holds the time in which other work had the processor, as the probes' does. `deviation_percent`
is how far it is from the seconds asked for, and `step_s` the probes' step that the row's number of steps comes from.
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

from vesselgan.config.compose import config_hash, parse
from vesselgan.config.schema import Benchmark
from vesselgan.core.atomic_io import sha256_of, write_text
from vesselgan.core.console import log
from vesselgan.core.errors import UsageError
from vesselgan.core.version import __version__
from vesselgan.formats.cohort import COHORT, shards_dir
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import MANIFEST, content_hash
from vesselgan.runtime import distributed
from vesselgan.runtime.provenance import device_name
from vesselgan.tools.benchmark.pipeline import Pipeline, dice_of_fitted_threshold
from vesselgan.training.run import check_places
from vesselgan.viz import plots

TURNS = 3
"""Probes of a step's seconds, each recipe's in turn."""
SPLIT = "validation"
SETS = (("gan", "train"), ("unet", "train"), ("unet", SPLIT))
"""Shards of the cohort that are learned from, or choose a U-Net's step."""
THRESHOLD, REAL, SHUFFLED = "threshold, fitted on the same volumes", "real", "real, labels shuffled"
OURS = {"train.max_steps", "train.epochs", "train.max_minutes", "train.log_every", "train.seed", "run_dir", "work_dir"}
OURS |= {"data", "data.cohort_dir", "project"}
"""Settings that no recipe makes: how long, with which seed, on which cohort."""
LARGEST_DEVIATION_PERCENT = 15
COLUMNS = ["source", "seconds", "seed", "all", "intracranial"]
COLUMNS += ["steps", "step_s", "device_s", "deviation_percent", "sampling_s"]


def run(config: Benchmark) -> None:
    """Write recipes.json, recipes.csv and dice.svg into config.out; what was measured there already is kept.

    recipes.json has a row per seed, the table their means too. Raises UsageError for a recipe that train_gan refuses.
    """
    out = Path(config.out or "work/utility")
    pipeline = _pipeline(config, out)
    hashes = {recipe: _config_hash(recipe, pipeline) for recipe in config.recipes}
    out.mkdir(parents=True, exist_ok=True)
    rows = _Recipes(config, out, pipeline, hashes).rows()
    write_text(out / "recipes.json", json.dumps(rows, indent=1) + "\n")
    write_text(out / "dice.svg", _curves(pd.DataFrame(rows)).svg)
    table = _with_means(pd.DataFrame(rows))
    write_text(out / "recipes.csv", table.to_csv(index=False))
    print(table[[name for name in COLUMNS if name in table]].round(3).to_string(index=False, na_rep=""))
    for row in rows:
        if abs(row.get("deviation_percent", 0)) > LARGEST_DEVIATION_PERCENT:
            log.warning(
                f"{row['source']}, seed {row['seed']}: trained for {row['device_s']:.4g} s where {row['seconds']:.4g} "
                "were asked for: not at equal compute; measure again in another out= on an idle machine"
            )


def _pipeline(config: Benchmark, out: Path) -> Pipeline:
    folder = [] if config.cohort_dir is None else [f"data.cohort_dir={config.cohort_dir}"]
    return Pipeline(out, ["data=phantom", f"work_dir={out}", *folder], ["preset=demo"])


def _config_hash(recipe: str, pipeline: Pipeline) -> str:
    """Of the training that a recipe describes. Raises UsageError where train_gan would."""
    try:
        words = shlex.split(recipe)
        if unfit := [word for word in words if "=" not in word or word.startswith("-")]:
            raise UsageError(f"`{unfit[0]}` is not key=value")
        if ours := [word for word in words if word.lstrip("+").split("=")[0] in OURS]:
            raise UsageError(f"`{ours[0]}`: time, seed and cohort are the benchmark's, alike for all; leave it out")
        config = parse("train_gan", None, [*words, *pipeline.data]).config
        check_places(config)
    except ValueError as error:  # a UsageError, or a quotation mark without its second
        raise UsageError(f"recipes: `{recipe}`: {error}") from error
    return config_hash(config)


@dataclass(frozen=True)
class _Recipes:
    config: Benchmark
    out: Path
    pipeline: Pipeline
    hashes: dict[str, str]
    """Recipe -> hash of its configuration."""

    def rows(self) -> list[dict[str, Any]]:
        config, cohort_dir = self.config, Path(self.config.cohort_dir or self.out / "phantom")
        if config.cohort_dir is None and not all((shards_dir(cohort_dir, *s) / MANIFEST).is_file() for s in SETS):
            self.pipeline.make_phantom([], [])
        cohort = _cohort_hash(cohort_dir)
        unet_words = ["data.source=real", *self.pipeline.unet, *self.pipeline.data]
        unet = {"cohort": cohort, "unet": config_hash(parse("train_unet", None, unet_words).config)}
        seeds = range(config.seed, config.seed + config.num_seeds)
        rows = [
            self._kept({"source": THRESHOLD, "cohort": cohort}, lambda _: dice_of_fitted_threshold(cohort_dir, SPLIT))
        ]
        rows += [self._kept({"source": REAL, "seed": seed, **unet}, partial(self._real, seed, False)) for seed in seeds]
        shuffled = partial(self._real, config.seed, True)
        rows.append(self._kept({"source": SHUFFLED, "seed": config.seed, **unet}, shuffled))
        turns = [{recipe: self._probe(recipe, turn, cohort) for recipe in config.recipes} for turn in range(TURNS)]
        step_s = {recipe: statistics.median(turn[recipe] for turn in turns) for recipe in config.recipes}
        return rows + [
            self._kept(
                {"source": recipe, "seconds": seconds, "seed": seed, "train_gan": self.hashes[recipe], **unet}
                | {"num_samples": config.num_samples},
                partial(self._trained, recipe, seconds, step_s[recipe], seed),
            )
            for recipe in config.recipes
            for seconds in config.seconds
            for seed in seeds
        ]

    def _real(self, seed: int, is_shuffled: bool, name: str) -> dict[str, Any]:
        words = (f"unet.seed={seed}", f"data.shuffle_labels={str(is_shuffled).lower()}")
        return self.pipeline.dice_of_unet(name, SPLIT, "data.source=real", *words)

    def _trained(self, recipe: str, seconds: float, step_s: float, seed: int, name: str) -> dict[str, Any]:
        steps = max(1, round(seconds / step_s))
        # A run that was stopped is resumed where its probes are kept, and is another where they say another step time.
        run_dir = self.out / f"{name}-{steps}"
        self.pipeline.train_gan(run_dir, steps, *shlex.split(recipe), f"train.seed={seed}")
        steps, device_s = _measured(RunDir(run_dir))
        sampling = self.pipeline.launch("generate", f"run={run_dir}", f"num_patches={self.config.num_samples}")
        learn = ("data.source=synthetic", f"synthetic={RunDir(run_dir).synthetic}", f"unet.seed={seed}")
        scores = self.pipeline.dice_of_unet(f"of-{run_dir.name}", SPLIT, *learn)
        times = {"device_s": device_s, "deviation_percent": 100 * (device_s / seconds - 1), "sampling_s": sampling}
        return {"run": run_dir.name, "steps": steps, "step_s": step_s, **times, **scores}

    def _probe(self, recipe: str, turn: int, cohort: str) -> float:
        """The median seconds of a step, by the run's own log; of this machine's device."""
        device = device_name(distributed.choose_device("auto", 0))

        def measure(name: str) -> dict[str, Any]:
            return {"step_s": self.pipeline.seconds_of_step(self.out / name, *shlex.split(recipe))}

        facts = {"probe": recipe, "turn": turn, "train_gan": self.hashes[recipe], "cohort": cohort, "device": device}
        return self._kept(facts, measure)["step_s"]

    def _kept(self, facts: dict[str, Any], measure: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """The row of `measure`, made once for these facts and this version; its name stands for all of them."""
        facts = {**facts, "vesselgan": __version__}
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        path = self.out / f"{name}.row.json"
        if path.is_file():
            return json.loads(path.read_text())
        row = {"name": name, **facts, **measure(name)}
        write_text(path, json.dumps(row, indent=1) + "\n")
        numbers = [f"{key} {value:.3g}" for key, value in row.items() if isinstance(value, float)]
        log.info(f"{next(iter(facts.values()))}: {', '.join(numbers)}")
        return row


def _cohort_hash(cohort_dir: Path) -> str:
    """Of what the cohort holds, wherever it lies. Raises DataError without shards or volumes."""
    digests = [content_hash(shards_dir(cohort_dir, *names)) for names in SETS] + [sha256_of(cohort_dir / COHORT)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:8]


def _measured(run_dir: RunDir) -> tuple[int, float]:
    """(steps, their seconds by the log): each entry holds the mean time of a step since the entry before."""
    rows = run_dir.metrics()
    before = [0, *(row["step"] for row in rows)]
    seconds = sum(row["time/step_ms"] / 1e3 * (row["step"] - start) for row, start in zip(rows, before, strict=False))
    return before[-1], seconds


def _with_means(table: pd.DataFrame) -> pd.DataFrame:
    """The rows, then the means over the seeds of each source and seconds."""
    groups = table.groupby(["source", "seconds"], sort=False, dropna=False)
    means = groups[[name for name in COLUMNS[3:] if name in table]].mean().reset_index()
    means["seed"] = [f"mean of {count}" for count in groups.size()]
    seeds = table["seed"].astype("Int64").astype(str).replace("<NA>", "")
    whole = pd.concat([table.assign(seed=seeds), means], ignore_index=True)
    first = [name for name in COLUMNS if name in whole]
    return whole[first + [name for name in whole if name not in first]]


def _curves(table: pd.DataFrame) -> plots.Chart:
    """Dice over the measured seconds, a line per recipe, with the real patches' and the threshold's as level ones."""
    measured = table[table["device_s"].notna()]
    ends = np.array([0.0, float(measured["device_s"].max())])
    series = []
    for source, title in ((REAL, "real patches"), (THRESHOLD, THRESHOLD)):
        level = float(table.loc[table["source"] == source, "all"].mean())
        series.append(plots.Series(title, ends, np.full(2, level)))
    for recipe, rows in measured.groupby("source", sort=False):
        means = rows.groupby("seconds")[["device_s", "all"]].mean()
        x, y = means["device_s"].to_numpy(float), means["all"].to_numpy(float)
        series.append(plots.Series(textwrap.shorten(str(recipe), 44, placeholder=" ..."), x, y))
    axes = {"x_label": "device seconds of training", "y_label": "Dice, validation volumes"}
    return plots.lines(series, **axes, title="What samples teach", middle=100)
