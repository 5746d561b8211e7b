"""The pipeline's commands as processes, for measurements of what samples teach."""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vesselgan.core import processes
from vesselgan.core.errors import ResourceError
from vesselgan.formats.results import read_result
from vesselgan.runtime import distributed
from vesselgan.workflow.stage import module_command, stop_message, unfinished_training


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
