"""The pipeline's commands as processes, for measurements of what samples teach."""

import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vesselgan.core import processes
from vesselgan.core.errors import ResourceError
from vesselgan.evaluation.volume_scores import fit_threshold, read_levels, read_truth, regions_of
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.results import read_result
from vesselgan.formats.run_dir import RunDir
from vesselgan.metrics.overlap import dice
from vesselgan.runtime import distributed
from vesselgan.workflow.stage import module_command, stop_message, unfinished_training

PROBE_STEPS, READINGS = 30, 6
"""Of a short training, from whose log the seconds of a step are read; lines that a training's log gets."""


def run_command(work: Path, *arguments: str) -> float:
    """`python ARGUMENTS`, output in work/log.txt; ResourceError with its end where it fails, or stopped a training.

    Returns seconds of the device: CPU time of all its processes and threads; wall time where a GPU does the work.
    """
    used, started = _children_cpu_s(), time.monotonic()
    is_gpu = distributed.choose_device("auto", 0).type == "cuda"
    # One thread on a CPU: threads that wait for each other use up time without computing.
    threads = None if is_gpu else 1
    code = processes.run_command((sys.executable, *arguments), work / "log.txt", threads=threads, head="")
    if code:
        end = (work / "log.txt").read_text(errors="replace")[-800:]
        raise ResourceError(f"a command ended with code {code}; all of its output is in {work / 'log.txt'}:\n{end}")
    if (run_dir := unfinished_training(arguments)) is not None:
        raise ResourceError(stop_message(run_dir))
    return time.monotonic() - started if is_gpu else _children_cpu_s() - used


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Pipeline:
    """A folder of runs and results on one cohort."""

    work: Path
    data: list[str]
    """Settings of every command that name the cohort."""
    unet: list[str]
    """Settings of every U-Net."""

    def launch(self, name: str, *arguments: str) -> float:
        """`vesselgan NAME`; seconds as of `run_command`."""
        return run_command(self.work, "-m", *module_command(name), *arguments)

    def make_phantom(self, cohort: list[str], shards: list[str]) -> None:
        run_command(self.work, "-m", "data_prep.make_phantom", *cohort, *self.data)
        run_command(self.work, "-m", "data_prep.build_shards", *shards, *self.data)

    def train_gan(self, run_dir: Path, steps: int, *settings: str) -> None:
        """Trains a GAN or a flow for so many steps."""
        words = (*settings, f"train.max_steps={steps}", f"train.log_every={max(1, steps // READINGS)}")
        self.launch("train_gan", "--run_dir", str(run_dir), *words, *self.data)

    def seconds_of_step(self, run_dir: Path, *settings: str) -> float:
        """The median seconds of a training step by the log of PROBE_STEPS, without its first reading."""
        words = (*settings, "train.checkpoint_every=1000000", "train.image_every=1000000")
        self.train_gan(run_dir, PROBE_STEPS, *words)
        return statistics.median(row["time/step_ms"] for row in RunDir(run_dir).metrics()[1:]) / 1e3

    def dice_of_unet(self, name: str, split: str, *learn: str) -> dict[str, float]:
        """Mean Dice over the whole volumes of a split, of a U-Net that learns with the settings `learn`."""
        run_dir, predictions = self.work / f"unet-{name}", self.work / f"predictions-{name}"
        self.launch("train_unet", "--run_dir", str(run_dir), *learn, *self.unet, *self.data)
        self.launch("segment", f"run={run_dir}", f"split={split}", f"out={predictions}", *self.data)
        return self.dice(name, split, "evaluate=segmentation", f"predictions={predictions}")

    def dice(self, name: str, split: str, *settings: str) -> dict[str, float]:
        """Mean Dice of `all` vessels and, with brain masks, of `intracranial` ones."""
        out = self.work / f"{name}.json"
        self.launch("evaluate", *settings, f"name={name}", f"split={split}", f"out={out}", *self.data)
        summary = read_result(out)["summary"]
        return {region: float(scores["dice"]["mean"]) for region, scores in summary.items() if "dice" in scores}


def dice_of_fitted_threshold(cohort_dir: Path, split: str) -> dict[str, float]:
    """Mean Dice of the best global threshold of each region, fitted on the very volumes of the split that it is scored
    on: no threshold does better there. Regions as of `Pipeline.dice`. Raises DataError for a missing label or mask.
    """
    subjects = Cohort.read(cohort_dir).of_split(split)
    regions = regions_of(subjects)
    levels = fit_threshold(subjects, regions)
    scores: dict[str, list[float]] = {region: [] for region in regions}
    for name, subject in subjects.items():
        with subject.hidden_paths():
            truth_XYZ, mask_XYZ = read_truth(name, subject, needs_mask="intracranial" in regions)
            level_XYZ = read_levels(name, subject)
        for region, level in levels.items():
            region_XYZ = mask_XYZ if region == "intracranial" else np.ones_like(truth_XYZ)
            scores[region].append(dice(truth_XYZ[region_XYZ], level_XYZ[region_XYZ] >= level))
    return {region: float(np.mean(values)) for region, values in scores.items()}
