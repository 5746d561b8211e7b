"""The sets of an audit: what is to leave, patches or whole heads, what training saw, other people's, second visits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.config.schema import Audit
from vesselgan.core.errors import DataError, UsageError
from vesselgan.evaluation.audit_samples import Head, Heads, Patch, Patches, Samples
from vesselgan.evaluation.reference import (
    check_overlap,
    check_trained_on,
    find_reference,
    match_kinds,
    named_training_shards,
)
from vesselgan.formats.cohort import SPLITS, Cohort, Subject, shards_dir
from vesselgan.formats.intensities import scale_to_255
from vesselgan.formats.nifti import read_header
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import MANIFEST, ShardSet, content_hash
from vesselgan.formats.synthetic_volumes import SyntheticVolumes
from vesselgan.formats.volumes import Volume, read_image, read_label


@dataclass(frozen=True)
class SyntheticSet:
    folder: Path
    made_by: dict[str, Any]
    """As its generator recorded: run, weights, seed, training set."""
    content: str
    """Hash."""
    samples: list[Any]

    @property
    def name(self) -> str:
        """The generator's."""
        return str(self.made_by.get("run") or self.folder.name)


@dataclass(frozen=True)
class AuditSets:
    kind: Samples
    synthetic_sets: list[SyntheticSet]
    training: list[Any]
    held_out: list[Any]
    """Of patches, as many grid and vessel patches, by ratio, as training has."""
    second_visits: list[Any]
    """Of training patients."""
    training_patches: list[Patch]
    held_out_patches: list[Patch]
    overlap: str
    """What was compared to find that no patch is in both real sets."""
    notes: list[str] = field(default_factory=list)

    @property
    def training_set(self) -> ShardSet:
        return self.training_patches[0].shards

    @property
    def held_out_set(self) -> ShardSet:
        return self.held_out_patches[0].shards

    @property
    def synthetic(self) -> list[Any]:
        return [sample for one in self.synthetic_sets for sample in one.samples]

    @property
    def rows(self) -> list[slice]:
        """Of each synthetic set in `synthetic`."""
        ends = np.cumsum([len(one.samples) for one in self.synthetic_sets]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(one.name for one in self.synthetic_sets))

    @property
    def training_patients(self) -> list[str]:
        return [sample.patient for sample in self.training]

    @property
    def held_out_patients(self) -> list[str]:
        return [sample.patient for sample in self.held_out]


def read_sets(config: Audit) -> AuditSets:
    """Raises UsageError if no synthetic set is named, one holds real patches, or patches and volumes are named
    together. Raises DataError if something is missing, damaged or does not fit, if the generator had another training
    set, or if a patient is in both splits.
    """
    folders = _folders(config)
    training = named_training_shards(config.data.cohort_dir)
    held_out, purpose = find_reference(config.data.cohort_dir, config.reference)
    are_volumes = [(Path(folder) / "images").is_dir() for folder in folders]
    if len(set(are_volumes)) > 1:
        raise UsageError(f"synthetic=[{', '.join(folders)}]: names patches and volumes; audit each kind on its own")
    is_of_volumes = all(are_volumes)
    synthetic_sets = [_volumes(one) if is_of_volumes else _patches(one, training, held_out) for one in folders]
    notes = _check_sets(synthetic_sets, training)
    later = _later_visits(config.second_visits, training)
    for shards in (training, held_out, *(one for one, _ in later)):
        shards.check_bytes()
    overlap = check_overlap(held_out, training, Path(config.work_dir) / "features")
    rows, note = match_kinds(held_out, training if purpose == "unet" else None, config.seed)
    notes += [note] if note else []
    patches = [Patch(training, i) for i in range(len(training))], [Patch(held_out, int(i)) for i in rows]
    if is_of_volumes:
        first, others = (_heads(config.data.cohort_dir, one, one.subjects) for one in (training, held_out))
        second = [head for one, names in later for head in _heads(str(config.second_visits), one, names)]
        kind = Heads([*first, *others, *second, *(head for one in synthetic_sets for head in one.samples)])
        sets = AuditSets(kind, synthetic_sets, first, others, second, *patches, overlap, notes)
    else:
        visits = [Patch(one, i) for one, names in later for i in range(len(one)) if one.subject(i) in names]
        sets = AuditSets(Patches(), synthetic_sets, *patches, visits, *patches, overlap, notes)
    if config.second_visits is not None and not sets.second_visits:
        notes.append(f"second_visits={config.second_visits}: holds no later scan of a training patient")
    if shared := sorted(set(sets.training_patients) & set(sets.held_out_patients)):
        raise DataError(f"{held_out.folder}: patients of the training set ({', '.join(shared[:5])}) are held out too")
    return sets


def _scan(shards: ShardSet, name: str) -> str | None:
    """Hash of the image's bytes."""
    return shards.subjects[name].get("image_sha256")


def _check_sets(synthetic_sets: Sequence[SyntheticSet], training: ShardSet) -> list[str]:
    """Raises UsageError or DataError if the sets do not fit; returns notes on what cannot be checked."""
    if len({one.content for one in synthetic_sets}) < len(synthetic_sets):
        raise UsageError(f"synthetic=[{', '.join(str(one.folder) for one in synthetic_sets)}]: names a set twice")
    notes = [check_trained_on(one.folder, one.made_by, training) for one in synthetic_sets]
    return list(dict.fromkeys(note for note in notes if note))


def _patches(folder: str, training: ShardSet, held_out: ShardSet) -> SyntheticSet:
    shards = ShardSet(folder)
    if shards.origin != "synthetic":
        raise UsageError(f"synthetic={folder}: holds real patches; name one that was generated")
    for real in (training, held_out):
        if real.patch_shape != shards.patch_shape:
            raise DataError(
                f"{folder} has patches of {list(shards.patch_shape)} voxels, {real.folder} of "
                f"{list(real.patch_shape)}; name the cohort that the GAN was trained on"
            )
    shards.check_bytes()
    samples = [Patch(shards, i) for i in range(len(shards))]
    return SyntheticSet(shards.folder, dict(shards.manifest.extra), content_hash(shards.folder), samples)


def _volumes(folder: str) -> SyntheticSet:
    volumes = SyntheticVolumes(folder)
    made_by, subjects = volumes.settings(), volumes.subjects
    if not subjects:
        raise DataError(f"{volumes.folder}: holds no complete head; start `vesselgan generate volumes=N` again")
    samples = []
    for name in subjects:
        header = read_header(volumes.path("labels", name))
        image = partial(_data, read_image, volumes.path("images", name))
        label = partial(_data, read_label, volumes.path("labels", name))
        samples.append(Head(name, header.shape, header.spacing_mm, image, label))
    return SyntheticSet(volumes.folder, made_by, volumes.content_hash(), samples)


def _data(read: Callable[..., Volume], *path: Path) -> np.ndarray:
    return read(*path).data_XYZ


def _scaled(subject: Subject) -> np.ndarray:
    return scale_to_255(subject.read_image().data_XYZ, subject.limits)


def _folders(config: Audit) -> list[str]:
    """Raises UsageError if nothing is named."""
    if config.synthetic:
        return config.synthetic
    if config.run is None:
        raise UsageError("audit needs run=RUN, or synthetic=[DIR] that `vesselgan generate` wrote")
    run = RunDir(config.run)
    has_volumes_alone = run.synthetic_volumes.is_dir() and not run.synthetic.is_dir()
    return [str(run.synthetic_volumes if has_volumes_alone else run.synthetic)]


def _later_visits(cohort_dir: str | None, training: ShardSet) -> list[tuple[ShardSet, list[str]]]:
    """The shards of `cohort_dir` and their subjects who are training patients on another scan.

    Raises DataError for a cohort without shards, and for patches of another shape.
    """
    if cohort_dir is None:
        return []
    folders = [shards_dir(cohort_dir, purpose, split) for split in SPLITS for purpose in ("gan", "unet")]
    later = [ShardSet(folder) for folder in folders if (folder / MANIFEST).is_file()]
    if not later or any(one.patch_shape != training.patch_shape for one in later):
        raise DataError(
            f"second_visits={cohort_dir}: has no shards of {list(training.patch_shape)} voxels; make them: "
            "`vesselgan build-shards`"
        )
    patients = training.patients()
    scans = {_scan(training, name) for name in training.subjects} - {None}
    return [
        (one, [name for name in one.subjects if one.patient_of(name) in patients and _scan(one, name) not in scans])
        for one in later
    ]


def _heads(cohort_dir: str, shards: ShardSet, names: Iterable[str]) -> list[Head]:
    """The whole volumes that shards were cut from, of these subjects."""
    cohort, heads = Cohort.read(cohort_dir), []
    for name in names:
        if (subject := cohort.subjects.get(name)) is None or subject.label is None:
            raise DataError(f"{shards.folder}: the cohort has no labelled volume of {name}; prepare the cohort again")
        image, label = partial(_scaled, subject), partial(_data, subject.read_label)
        heads.append(Head(shards.patient_of(name), subject.shape, subject.spacing_mm, image, label))
    return heads
