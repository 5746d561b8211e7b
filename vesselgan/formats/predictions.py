"""A folder of segmented volumes.

<subject>.nii.gz                    the label, on its image's grid
probability/<subject>.nii.gz        on request, likewise
segmentation.json                   {"format_version", "settings", "volumes": {subject: entry}, "cohort_dir"}
segmentation.rank-<rank>.json       the entries of one rank of a job that still runs, or was stopped
"""

import json
from pathlib import Path
from typing import Any

from vesselgan.core.atomic_io import sha256_of, write_text
from vesselgan.core.console import differences
from vesselgan.core.errors import DataError, UsageError, reading
from vesselgan.core.names import check_id, path_in

FORMAT_VERSION = 2


class Predictions:
    """Segmented volumes and the settings that they were made with; equal settings mean equal predictions."""

    def __init__(self, folder: str | Path, *, cohort_dir: str | None = None) -> None:
        """cohort_dir: of new predictions, the cohort that is segmented; None for other files."""
        self.folder = Path(folder)
        self._cohort_dir = cohort_dir
        self.record = self.folder / "segmentation.json"
        """Exists once any volume is segmented."""

    def label(self, subject: str) -> Path:
        return path_in(self.folder, subject, ".nii.gz")

    def probability(self, subject: str) -> Path:
        return path_in(self.folder / "probability", subject, ".nii.gz")

    def settings(self) -> dict[str, Any]:
        """The recorded settings; empty for predictions of another program. Raises DataError for a damaged record."""
        return _read(self.record)[0] if self.record.exists() else {}

    def warnings(self) -> dict[str, list[str]]:
        """Subject -> in what its image is unlike those that the U-Net learned from; subjects without are left out."""
        volumes = _read(self.record)[1] if self.record.exists() else {}
        return {name: list(entry["warnings"]) for name, entry in volumes.items() if entry.get("warnings")}

    def cohort_dir(self) -> Path | None:
        """The cohort that was segmented; None for other files. The record must be readable, as `settings` checks."""
        name = json.loads(self.record.read_text()).get("cohort_dir")
        return Path(name) if isinstance(name, str) else None

    def check(self, subject: str, image: Path) -> None:
        """Raises DataError unless the record, if there is one, lists this image of the subject and its prediction."""
        if not self.record.exists():
            return
        if not self.is_up_to_date(subject, _read(self.record)[1].get(subject), image, probability=False):
            raise DataError(
                f"{self.label(subject)}: is not what the record beside it says of {image}, so one of the two was "
                "replaced, or it is another cohort's subject; run `vesselgan segment` again, or score predictions "
                "of another program in a folder without segmentation.json"
            )

    def open(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The entries by subject, those of stopped ranks included; makes a new folder's record.

        Raises UsageError unless the folder is new, empty or has the same settings.
        """
        if not self.record.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise UsageError(f"out={self.folder}: is not empty and was not made by segment; name another folder")
            self.write(settings, {})
        volumes: dict[str, Any] = {}
        for record in [self.record, *sorted(self._rank_records())]:
            stored, entries = _read(record)
            if changed := differences(stored, settings):
                raise UsageError(
                    f"out={self.folder}: was made with other settings ({'; '.join(changed)}); name another folder"
                )
            volumes |= {check_id(subject, record): entry for subject, entry in entries.items()}
        return volumes

    def write(self, settings: dict[str, Any], volumes: dict[str, Any], *, rank: int = 0) -> None:
        """Writes the entries of one rank; rank 0 writes the common record."""
        path = self.folder / f"segmentation.rank-{rank}.json" if rank else self.record
        content = {"format_version": FORMAT_VERSION, "settings": settings, "volumes": volumes}
        content["cohort_dir"] = self._cohort_dir
        write_text(path, json.dumps(content, indent=1) + "\n")

    def merge(self, settings: dict[str, Any], volumes: dict[str, Any]) -> None:
        """Collects the entries of all ranks in the common record; called by one process once all are done."""
        self.write(settings, self.open(settings) | volumes)
        for path in self._rank_records():
            path.unlink()

    def is_up_to_date(self, subject: str, entry: dict[str, Any] | None, image: Path, *, probability: bool) -> bool:
        """Whether the outputs of `entry` exist, unchanged, and are of this very image, which must be there."""
        if entry is None or not self.label(subject).is_file():
            return False
        if probability and not self.probability(subject).is_file():
            return False
        with reading(image, "put the image back that the cohort names"):
            image_sha256 = sha256_of(image)
        hashes = entry.get("output_sha256"), entry.get("image_sha256")
        return hashes == (sha256_of(self.label(subject)), image_sha256)

    def _rank_records(self) -> list[Path]:
        return list(self.folder.glob("segmentation.rank-*.json"))


def _read(record: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, entry of each subject) of a record. Raises DataError for a damaged one or one of another version."""
    with reading(record, "segment into a new folder"):
        content = json.loads(record.read_text())
        version, settings, volumes = content["format_version"], {**content["settings"]}, {**content["volumes"]}
        if not all(isinstance(entry, dict) for entry in volumes.values()):
            raise ValueError("a volume without its entry")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{record}: format version {version!r}, this version reads {FORMAT_VERSION}; segment into a new folder"
        )
    return settings, volumes
