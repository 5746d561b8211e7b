"""cohort.json: who is in a cohort, in which split, and how each volume was scaled. Written by data preparation.

    {"format": "vesselgan-cohort", "format_version": 3, "made_by": ..., "name": ..., "percentiles": [0, 99.99],
     "subjects": {id: {"split": "train" | "validation" | "test", "image": path, "label": path | null,
                       "mask": path | null, "shape": [X, Y, Z], "spacing_mm": [x, y, z], "limits": [low, high],
                       "num_clipped": n, "patient": id | null, "image_sha256": hex, "label_sha256": hex | null,
                       "mask_sha256": hex | null}}}

Shape and spacing are the canonical (RAS) volume's. Paths are relative to the file's folder where they lie below it,
so that a cohort moves with its data, else absolute. A subject belongs to one split alone, by its id and by its
bytes: the same volume under another name in another split is refused.

"reading" holds how files become voxels: {"nan_value", "label_values", "label_binarize_threshold"} of data.prepare.

"paths" is "here", or "private" in a pseudonymous cohort: then they stand in paths.private.json beside cohort.json
({id: {"image": path, ...}}, readable by the owner alone). That file links names to patients: it is never passed on, and
without it nothing can be segmented or scored again.
"""

import json
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vesselgan.core.atomic_io import write_private, write_text
from vesselgan.core.errors import DataError, NewerFormatError, ResourceError, UsageError, reading
from vesselgan.core.names import check_id, hidden_paths, object_without_duplicates
from vesselgan.core.version import __version__
from vesselgan.formats import volumes
from vesselgan.formats.shards import MANIFEST, ShardSet
from vesselgan.formats.volumes import Volume

FORMAT_VERSION = 3
COHORT = "cohort.json"
PRIVATE_PATHS = "paths.private.json"
PHANTOM_SETTINGS = "phantom.json"
"""In the folder of a cohort that `vesselgan make-phantom` made: nobody's volumes."""
REMEDY = "prepare the cohort again"
ROLES = ("image", "label", "mask")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ReadOptions:
    """How the files of a cohort become voxels (data.prepare)."""

    nan_value: float | None = None
    label_values: tuple[int, ...] | None = None
    label_binarize_threshold: float | None = None


@dataclass(frozen=True)
class Subject:
    """The volumes of one visit of a patient; paths absolute or relative to the working directory."""

    split: str
    image: Path
    label: Path | None
    mask: Path | None
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    limits: tuple[float, float]
    """Intensities that become 0 and 255."""
    num_clipped: int
    """Non-zero voxels outside the limits."""
    image_sha256: str
    label_sha256: str | None
    mask_sha256: str | None = None
    patient: str | None = None
    """Whose visit it is; None if unknown."""
    reading: ReadOptions = ReadOptions()
    pseudonym: str | None = None
    """In a pseudonymous cohort: what messages say in place of a path."""

    def read_image(self) -> Volume:
        """The image as data preparation reads it. Raises DataError unless its voxels are those that were checked."""
        options = self.reading
        return self._read("image", lambda path: volumes.read_image(path, nan_value=options.nan_value))

    def read_label(self) -> Volume:
        """The label likewise; the subject must have one."""
        values, threshold = self.reading.label_values, self.reading.label_binarize_threshold
        return self._read(
            "label", lambda path: volumes.read_label(path, label_values=values, label_binarize_threshold=threshold)
        )

    def read_mask(self) -> Volume:
        """The brain mask likewise; the subject must have one."""
        return self._read("mask", volumes.read_mask)

    def _read(self, role: str, read: Callable[[Path], Volume]) -> Volume:
        path: Path = getattr(self, role)
        assert path is not None, role
        with self.hidden_paths():
            volume = read(path)
            if volumes.sha256_of_voxels(volume.data_XYZ) != getattr(self, f"{role}_sha256"):
                raise DataError(
                    f"{path}: its voxels changed since they were checked; put the earlier file back, or touch it and "
                    "start `vesselgan build-shards` again: then the new one is checked"
                )
        return volume

    def read_header(self) -> volumes.Header:
        """The image's. Raises DataError or ResourceError for a file that cannot be read."""
        with self.hidden_paths():
            return volumes.read_header(self.image)

    def hidden_paths(self) -> AbstractContextManager[None]:
        """Where this subject's files are opened by path: errors name the pseudonym, if there is one, in its place."""
        paths = {role: getattr(self, role) for role in ROLES if self.pseudonym is not None}
        return hidden_paths({path: f"the {role} of {self.pseudonym}" for role, path in paths.items() if path})


def is_phantom(root: str | Path) -> bool:
    """Whether the volumes below `root` were made by `vesselgan make-phantom`."""
    return (Path(root) / PHANTOM_SETTINGS).is_file()


@dataclass(frozen=True)
class Cohort:
    name: str
    percentiles: tuple[float, float]
    """Of the non-zero voxels, that become 0 and 255."""
    subjects: dict[str, Subject]
    is_pseudonymous: bool = False
    """Subjects have pseudonyms, and the paths of their files stand in a private file."""

    @property
    def is_phantom(self) -> bool:
        """Whether every volume lies in a phantom's folder, so that no patient is shown with it."""
        return all(is_phantom(subject.image.parent.parent) for subject in self.subjects.values())

    def of_split(self, split: str) -> dict[str, Subject]:
        """The subjects of one split, in order. Raises UsageError for an unknown split, DataError for an empty one."""
        if split not in SPLITS:
            raise UsageError(f"split={split!r} is not one of {', '.join(SPLITS)}")
        chosen = {name: subject for name, subject in self.subjects.items() if subject.split == split}
        if not chosen:
            counts = {s: sum(subject.split == s for subject in self.subjects.values()) for s in SPLITS}
            raise DataError(
                f"cohort {self.name} has no subject in split {split} (subjects: {counts}); "
                "change data.prepare.split and prepare it again"
            )
        return chosen

    @staticmethod
    def name_in(cohort_dir: str | Path, otherwise: str) -> str:
        """The name in cohort.json; `otherwise` where shards stand without one. Raises DataError for a damaged one."""
        path = Path(cohort_dir) / COHORT
        with reading(path, REMEDY):
            return check_id(_content(path)["name"], path) if path.is_file() else otherwise

    @classmethod
    def read(cls, cohort_dir: str | Path) -> "Cohort":
        """Reads cohort.json. Raises DataError if it is missing, damaged, newer, or has one volume in two splits."""
        path = Path(cohort_dir) / COHORT
        with reading(path, REMEDY):
            content = _content(path)
            is_pseudonymous = content["paths"] == "private"
            paths = _read_private(path.with_name(PRIVATE_PATHS)) if is_pseudonymous else content["subjects"]
            options = _read_options(content["reading"])
            subjects = {
                check_id(name, path): _from_json(entry, paths[name], path.parent, options)
                for name, entry in content["subjects"].items()
            }
            if is_pseudonymous:
                subjects = {name: replace(subject, pseudonym=name) for name, subject in subjects.items()}
            lower, upper = (float(percentile) for percentile in content["percentiles"])
            cohort = cls(check_id(content["name"], path), (lower, upper), subjects, is_pseudonymous)
        _check_leakage(path, cohort.subjects)
        return cohort

    def write(self, cohort_dir: str | Path) -> Path:
        """Writes cohort.json completely or not at all. Raises DataError for a volume in two splits, ResourceError."""
        path = Path(cohort_dir) / COHORT
        _check_leakage(path, self.subjects)
        paths = {name: _paths(subject, path.parent) for name, subject in self.subjects.items()}
        readings = {subject.reading for subject in self.subjects.values()} or {ReadOptions()}
        assert len(readings) == 1, readings
        content = {
            "format": "vesselgan-cohort",
            "format_version": FORMAT_VERSION,
            "made_by": f"vesselgan {__version__}",
            "name": self.name,
            "percentiles": [float(percentile) for percentile in self.percentiles],
            "reading": asdict(readings.pop()),
            "paths": "private" if self.is_pseudonymous else "here",
            "subjects": {
                name: {**({} if self.is_pseudonymous else paths[name]), **_to_json(subject)}
                for name, subject in self.subjects.items()
            },
        }
        try:
            if self.is_pseudonymous:
                write_private(path.with_name(PRIVATE_PATHS), json.dumps(paths, indent=1) + "\n")
            write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise ResourceError(f"{path}: cannot be written ({error.strerror}); make room and start again") from error
        return path


def shards_dir(cohort_dir: str | Path, purpose: str, split: str) -> Path:
    """The folder of the shards cut from a cohort for `gan` or `unet`."""
    return Path(cohort_dir) / "shards" / purpose / split


def training_shards(cohort_dir: str | Path) -> ShardSet | None:
    """The shards that the cohort's GANs are trained on; None if there are none."""
    folder = shards_dir(cohort_dir, "gan", "train")
    return ShardSet(folder) if (folder / MANIFEST).is_file() else None


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=object_without_duplicates)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no cohort here; make it: `vesselgan build-shards data=NAME`") from None
    if not isinstance(content, dict) or content.get("format") != "vesselgan-cohort":
        raise DataError(f"{path}: not a cohort of this project; {REMEDY}")
    _check_version(path, content.get("format_version"), content.get("made_by"))
    return content


def _check_version(path: Path, version: object, made_by: object) -> None:
    if version != FORMAT_VERSION:
        is_newer = isinstance(version, int) and version > FORMAT_VERSION
        raise (NewerFormatError if is_newer else DataError)(
            f"{path}: made by {made_by} in format version {version!r}, this is vesselgan {__version__} "
            f"and reads {FORMAT_VERSION}; upgrade vesselgan or prepare the cohort again"
        )


def _paths(subject: Subject, folder: Path) -> dict[str, str | None]:
    return {role: _relative(getattr(subject, role), folder) for role in ROLES}


def _to_json(subject: Subject) -> dict[str, Any]:
    assert subject.split in SPLITS, subject.split
    return {
        "split": subject.split,
        "shape": [int(n) for n in subject.shape],
        "spacing_mm": [float(s) for s in subject.spacing_mm],
        "limits": [float(limit) for limit in subject.limits],
        "num_clipped": int(subject.num_clipped),
        "patient": subject.patient,
        "image_sha256": subject.image_sha256,
        "label_sha256": subject.label_sha256,
        "mask_sha256": subject.mask_sha256,
    }


def _from_json(entry: dict[str, Any], names: dict[str, Any], folder: Path, reading: ReadOptions) -> Subject:
    """Raises KeyError, TypeError or ValueError for what breaks the format."""
    image, label, mask = (_path(names[role], folder) for role in ROLES)
    shape: Any = tuple(int(n) for n in entry["shape"])
    spacing_mm: Any = tuple(float(s) for s in entry["spacing_mm"])
    low, high = (float(limit) for limit in entry["limits"])
    patient = entry.get("patient")  # not in a cohort of an earlier version
    if entry["split"] not in SPLITS or image is None:
        raise ValueError(f"split {entry['split']!r}, image {names['image']!r}")
    if len(shape) != 3 or min(shape) < 1 or len(spacing_mm) != 3 or not all(0 < s < 1e6 for s in spacing_mm):
        raise ValueError(f"shape {shape}, spacing_mm {spacing_mm}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"limits {low}, {high}")
    return Subject(
        split=entry["split"],
        image=image,
        label=label,
        mask=mask,
        shape=shape,
        spacing_mm=spacing_mm,
        limits=(low, high),
        num_clipped=int(entry["num_clipped"]),
        image_sha256=str(entry["image_sha256"]),
        label_sha256=None if entry["label_sha256"] is None else str(entry["label_sha256"]),
        mask_sha256=None if entry["mask_sha256"] is None else str(entry["mask_sha256"]),
        patient=None if patient is None else check_id(patient, folder / COHORT),
        reading=reading,
    )


def _path(name: str | None, folder: Path) -> Path | None:
    """Raises ValueError for a path that leads out of `folder` by steps, or would break a line."""
    if name is None:
        return None
    if not name.isprintable() or ".." in Path(name).parts:
        raise ValueError(f"path {name!a}")
    return folder / name


def _read_options(entry: dict[str, Any]) -> ReadOptions:
    nan_value, values, threshold = entry["nan_value"], entry["label_values"], entry["label_binarize_threshold"]
    return ReadOptions(
        None if nan_value is None else float(nan_value),
        None if values is None else tuple(int(value) for value in values),
        None if threshold is None else float(threshold),
    )


def _read_private(path: Path) -> dict[str, Any]:
    remedy = (
        "a pseudonymous cohort keeps the paths of its volumes there: put the file back, or start "
        "`vesselgan build-shards` again with the same data.prepare.key_file"
    )
    with reading(path, remedy):
        return json.loads(path.read_text(encoding="utf-8"))


def _relative(path: Path | None, folder: Path) -> str | None:
    if path is None:
        return None
    absolute, root = os.path.abspath(path), os.path.abspath(folder)
    return os.path.relpath(absolute, root) if os.path.commonpath([absolute, root]) == root else absolute


def _check_leakage(path: Path, subjects: dict[str, Subject]) -> None:
    """Raises DataError if one image or label, by its voxels, is in two splits."""
    first: dict[tuple[str, str], str] = {}
    for name, subject in subjects.items():
        for kind, sha256 in (("image", subject.image_sha256), ("label", subject.label_sha256)):
            other = name if sha256 is None else first.setdefault((kind, sha256), name)
            if subjects[other].split != subject.split:
                raise DataError(
                    f"{path}: subjects {other} ({subjects[other].split}) and {name} ({subject.split}) have the same "
                    f"{kind}: one patient under two names, or a copy; remove one of them"
                )
