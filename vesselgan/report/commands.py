"""The commands that fill the page's gaps, complete and ready to paste.

The page may be handed on, so that no path says whose machine this is: one outside the current folder starts at the work
directory's name, and its command runs in the folder that holds the work directory.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vesselgan.config.project import override
from vesselgan.config.schema import Report
from vesselgan.report.cohorts import name_of
from vesselgan.report.runs import Run

PLAIN = re.compile(r"[A-Za-z_./][\w./-]*")
"""A value that needs no quotes."""
PREDICTIONS = "predictions="


@dataclass(frozen=True)
class Commands:
    """The report's paths, of which the commands are made."""

    work_dir: str = "work"
    results: str = "work/results"
    error_maps: str = "work/errors"
    cohort: tuple[str, str] = ("phantom", "work/phantom")
    """Name and folder."""
    predictions: dict[str, str] = field(default_factory=dict)
    """Result's name -> folder of the volumes that it scored, as its own command named it."""

    @classmethod
    def of(cls, config: Report, results: Iterable[dict[str, Any]]) -> "Commands":
        predictions = {}
        for result in results:
            provenance = result.get("provenance")
            words = provenance.get("command") if isinstance(provenance, dict) else None
            for word in words if isinstance(words, list) else []:
                if str(word).startswith(PREDICTIONS):
                    predictions[str(result["name"])] = str(word).removeprefix(PREDICTIONS)
        maps = config.error_maps or cls.error_maps
        cohort = name_of(config.data), config.data.cohort_dir
        return cls(config.work_dir, config.results, maps, cohort, predictions)

    def place(self, path: str | Path) -> str:
        """The path as it stands on the page."""
        path = Path(path)
        if not path.is_absolute():
            return str(path)
        for folder in (Path.cwd(), Path(self.work_dir).absolute().parent):
            if path.is_relative_to(folder):
                return str(path.relative_to(folder))
        return path.name

    def generate(self, run: Path) -> str:
        return _line("generate", {"run": self.place(run)})

    def audit(self, run: Path, synthetic: Path) -> str:
        """Of the run's patches, wherever they lie."""
        out = self._result(f"audit-{run.name}")
        if synthetic == run / "synthetic":
            return _line("audit", {"run": self.place(run), "out": out})
        return _line("audit", {"synthetic": [self.place(synthetic)], "name": run.name, "out": out})

    def study(self, runs: Sequence[Run]) -> str:
        return _line("study", {"runs": [self.place(run.folder) for run in runs]})

    def threshold(self, cohort: str) -> str:
        """Of the best global threshold of a cohort."""
        name, folder = self.cohort
        is_own = cohort == name
        settings = {"evaluate": "threshold", "name": "threshold", "data.name": cohort}
        settings["data.cohort_dir"] = self.place(folder if is_own else Path(self.work_dir) / cohort)
        return _line("evaluate", {**settings, "out": self._result("threshold" if is_own else f"threshold-{cohort}")})

    def map_errors(self, name: str, cohort: str, split: str) -> str:
        """Of a segmentation result's error maps; it is scored again."""
        predictions = self.predictions.get(name, str(Path(self.work_dir) / "predictions" / name))
        settings = {"evaluate": "segmentation", "name": name, "predictions": self.place(predictions)}
        settings |= {} if split == "test" else {"split": split}
        settings["error_maps"] = f"{self.place(self.error_maps)}/{name}/{cohort}"
        return _line("evaluate", {**settings, "out": self._result(name)})

    def score_images(self, run: Run) -> str:
        """Of FID and PRD of the run's patches; the file of weights is the reader's."""
        settings = {"evaluate": "image", "name": run.variant or run.folder.name}
        settings["image.synthetic"] = self.place(run.synthetic or run.folder / "synthetic")
        settings["image.weights"] = "resnet_10_23dataset.pth"
        return _line("evaluate", {**settings, "out": self._result(f"image-{run.folder.name}")})

    def _result(self, name: str) -> str:
        return f"{self.place(self.results)}/{name}.json"


DEFAULT = Commands()
"""With the paths that every command takes by default."""


def _line(command: str, settings: Mapping[str, str | list[str]]) -> str:
    return shlex.join(["vesselgan", command, *(_word(key, value) for key, value in settings.items())])


def _word(key: str, value: str | list[str]) -> str:
    if isinstance(value, list) and all(map(PLAIN.fullmatch, value)):
        return f"{key}=[{','.join(value)}]"
    return f"{key}={value}" if isinstance(value, str) and PLAIN.fullmatch(value) else override(key, value)
