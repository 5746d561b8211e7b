"""The three sets of an audit: synthetic patches that are to leave, training patches, other people's real patches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vesselgan.config.schema import Audit
from vesselgan.core.errors import DataError, UsageError
from vesselgan.evaluation.reference import (
    check_overlap,
    check_trained_on,
    find_reference,
    match_kinds,
    training_shards,
)
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import ShardSet, content_hash

Patch = tuple[ShardSet, int]


@dataclass(frozen=True)
class AuditSets:
    synthetic_sets: list[ShardSet]
    training_set: ShardSet
    held_out_set: ShardSet
    synthetic: list[Patch]
    training: list[Patch]
    held_out: list[Patch]
    """As many grid and vessel patches, by ratio, as training has."""
    overlap: str
    """What was compared to find that no patch is in both real sets."""
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[str]:
        """The generators, as the synthetic sets name them."""
        return list(dict.fromkeys(str(one.manifest.extra.get("run") or one.folder.name) for one in self.synthetic_sets))

    @property
    def training_patients(self) -> list[str]:
        return patients(self.training)

    @property
    def held_out_patients(self) -> list[str]:
        return patients(self.held_out)


def read_sets(config: Audit) -> AuditSets:
    """Raises UsageError if no synthetic set is named or one holds real patches. Raises DataError if shards are missing,
    damaged or do not fit, if the generator had another training set, or if a patient is in both splits.
    """
    folders = config.synthetic or ([str(RunDir(config.run).synthetic)] if config.run else [])
    if not folders:
        raise UsageError("audit needs run=RUN, or synthetic=[DIR] that `vesselgan generate` wrote")
    synthetic_sets, training = [ShardSet(folder) for folder in folders], training_shards(config.data.cohort_dir)
    held_out, purpose = find_reference(config.data.cohort_dir, config.reference)
    if training is None:
        raise DataError(f"{config.data.cohort_dir}: has no shards/gan/train; name the cohort that the GAN learned from")
    notes = _check_fit(synthetic_sets, training, held_out)
    overlap = check_overlap(held_out, training, Path(config.work_dir) / "features")
    rows, note = match_kinds(held_out, training if purpose == "unet" else None, config.seed)
    sets = AuditSets(
        synthetic_sets,
        training,
        held_out,
        [(shards, i) for shards in synthetic_sets for i in range(len(shards))],
        [(training, i) for i in range(len(training))],
        [(held_out, int(i)) for i in rows],
        overlap,
        [*notes, *([note] if note else [])],
    )
    if shared := sorted(set(sets.training_patients) & set(sets.held_out_patients)):
        raise DataError(f"{held_out.folder}: patients of the training set ({', '.join(shared[:5])}) are held out too")
    return sets


def patients(patches: Iterable[Patch]) -> list[str]:
    """Whose patches they are: the patient of a subject's visit where it is known, else the subject."""
    subjects = [(shards, shards.subject(i)) for shards, i in patches]
    return [str(shards.subjects[subject].get("patient") or subject) for shards, subject in subjects]


def _check_fit(synthetic_sets: Sequence[ShardSet], training: ShardSet, held_out: ShardSet) -> list[str]:
    """Raises UsageError or DataError if the sets do not fit; returns notes on what cannot be checked."""
    notes = []
    if len({content_hash(synthetic.folder) for synthetic in synthetic_sets}) < len(synthetic_sets):
        raise UsageError(f"synthetic=[{', '.join(str(one.folder) for one in synthetic_sets)}]: names a set twice")
    for synthetic in synthetic_sets:
        if synthetic.origin != "synthetic":
            raise UsageError(f"synthetic={synthetic.folder}: holds real patches; name one that was generated")
        for real in (training, held_out):
            if real.patch_shape != synthetic.patch_shape:
                raise DataError(
                    f"{synthetic.folder} has patches of {list(synthetic.patch_shape)} voxels, {real.folder} of "
                    f"{list(real.patch_shape)}; name the cohort that the GAN was trained on"
                )
        notes += [note] if (note := check_trained_on(synthetic, training)) else []
    return list(dict.fromkeys(notes))
