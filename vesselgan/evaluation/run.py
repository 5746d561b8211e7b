"""The jobs of `vesselgan evaluate`: from a configuration to one JSON file of results."""

import importlib
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Evaluate
from vesselgan.core.console import counted, log
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.results import Result, check_replaceable, write_result

PRINTED = ("dice", "bavd_voxels", "bavd_mm", "centreline_dice")
"""The scores of volumes that are printed; the file has all."""
JOBS = {
    "segmentation": ("volume_scores", "score_predictions"),
    "threshold": ("volume_scores", "score_threshold"),
    "label_threshold": ("label_threshold", "sweep_thresholds"),
    "comparison": ("comparison", "compare_sources"),
    "image": ("image", "score_patches"),
}
"""Module and function of each job; loaded when it runs, since those that need no torch take seconds less without it."""


def evaluate(config: Evaluate) -> Result:
    """Runs the job `config.evaluate` and writes its result to `config.out`, atomically."""
    check_outputs(config)
    module, function = JOBS[config.evaluate]
    result: Result = getattr(importlib.import_module(f"vesselgan.evaluation.{module}"), function)(config)
    write_result(config.out, result)
    for line in _summary_lines(result):
        log.info(line)
    log.info(f"wrote {config.out}")
    return result


def check_outputs(config: Evaluate) -> None:
    """Raises UsageError, before anything is scored, where an output would replace what evaluate did not write."""
    check_replaceable(config.out)
    if config.evaluate == "segmentation" and config.error_maps is not None:
        from vesselgan.evaluation import error_maps  # draws, which takes seconds to load

        subjects = Cohort.read(config.data.cohort_dir).subjects.values()
        inputs = [path for s in subjects for path in (s.image, s.label, s.mask) if path is not None]
        inputs += [Path(config.predictions) / "prediction"] if config.predictions is not None else []
        error_maps.check_folder(Path(config.error_maps), inputs)


def _summary_lines(result: dict[str, Any]) -> list[str]:
    """Mean scores of volumes, or the closest label thresholds."""
    lines = []
    for region, metrics in result["summary"].items() if result["job"] == "segmentation" else ():
        means = ", ".join(f"{metric} {metrics[metric]['mean']:.3f}" for metric in PRINTED)
        count = metrics["dice"]["n"]
        lines.append(f"{result['name']}, {region}, {counted(count, 'subject')}: {means}")
    if result["job"] == "label_threshold":
        lines.append(f"closest label thresholds: {', '.join(f'{threshold:g}' for threshold in result['narrowed'])}")
    return lines
