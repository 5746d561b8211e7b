"""The cohort that a run, a set of shards, predictions or results belong to, as they record it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.overrides import flat_values
from vesselgan.config.project import override
from vesselgan.config.schema import Evaluate
from vesselgan.formats.cohort import COHORT, Cohort
from vesselgan.formats.predictions import Predictions
from vesselgan.formats.results import Results
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import MANIFEST, read_manifest

IDENTITY = ("name", "cohort_dir")
"""Settings of `data` that say which cohort it is, not how it is read."""
Data = dict[str, Any]


@dataclass(frozen=True)
class RecordedCohort:
    data: Data
    """Its settings, of IDENTITY."""
    source: Path
    """What records them."""

    def is_of(self, data: Any) -> bool:
        """Whether a command's settings `data` are of this cohort already."""
        return all(asdict(data)[key] == value for key, value in self.data.items())

    def overrides(self) -> list[str]:
        return [override(key, value) for key, value in flat_values({"data": self.data}).items()]


def recorded_cohort(config: Any) -> RecordedCohort | None:
    """The cohort of what `config`, a command's settings, names first; None if it names nothing that records one."""
    for path in _named(config):
        data = _data_of(path, Path(config.work_dir), is_results=str(path) == getattr(config, "results", None))
        if isinstance(data, dict):
            return RecordedCohort({key: data[key] for key in IDENTITY if key in data}, path)
    return None


def _named(config: Any) -> Iterator[Path]:
    """Runs, sets, predictions and results that a command reads, the ones that it is about first."""
    values = [getattr(config, key, None) for key in ("run_dir", "run", "runs", "synthetic", "results")]
    if isinstance(config, Evaluate):
        of_job = {"segmentation": config.predictions, "image": config.image.synthetic}
        of_job |= {"label_threshold": config.labels.synthetic}
        values = [of_job.get(config.evaluate)]
    for value in values:
        yield from map(Path, value if isinstance(value, list) else [value] if value else [])


def _data_of(path: Path, work_dir: Path, *, is_results: bool) -> Data | None:
    if (run := RunDir(path)).exists():
        return run.settings()[0].get("data")
    if (path / MANIFEST).is_file():
        # A set names its run, without a path: it may be passed on.
        name = str(read_manifest(path).extra.get("run"))
        runs = [RunDir(path.parent), RunDir(work_dir / "runs" / name)]
        return next((run.settings()[0].get("data") for run in runs if run.exists() and run.name == name), None)
    # A result may have the name of a record of predictions.
    if not is_results and (predictions := Predictions(path)).record.is_file():
        predictions.settings()
        folders = [predictions.cohort_dir()]
    else:
        names = {str(result.get("cohort")) for _, result in Results(path) if result.get("cohort") is not None}
        folders = [work_dir / name for name in names]
    if len(folders) != 1 or folders[0] is None or not (folders[0] / COHORT).is_file():
        return None
    return {"name": Cohort.read(folders[0]).name, "cohort_dir": str(folders[0])}
