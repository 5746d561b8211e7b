"""Cut a cohort into verified shards of paired patches: check, split by subject, scale, cut, write; over MPI.

    python -m data_prep.build_shards data=phantom
    mpiexec -n 2 python -m mpi4py -m data_prep.build_shards data=phantom
    python -m data_prep.build_shards data=pairs data.name=clinic data.root=/data/clinic data.prepare.repair=true

Writes <cohort_dir>/cohort.json, shards/gan/train, shards/unet/train and shards/unet/validation. Killed at any moment it
leaves nothing that looks whole, and the next start builds only what is missing. The bytes do not depend on the number
of ranks. Each rank holds one subject's voxels at a time.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep import build_state, lock, mpi, paths, pseudonyms
from data_prep.build_state import State
from data_prep.check import check_cohort, divide, require_rules
from data_prep.layouts import CohortFiles, find_subjects
from data_prep.mpi import Progress, World
from data_prep.patients import patients_of
from data_prep.qc_results import CohortReport, summary, table
from data_prep.shard_plan import PlannedShard, Source, plan
from data_prep.splits import assign
from vesselgan.config.compose import parse
from vesselgan.config.schema import BuildShards, PreparedData
from vesselgan.core.errors import DataError, NewerFormatError, ResourceError
from vesselgan.formats import volumes
from vesselgan.formats.cohort import Cohort, ReadOptions, Subject, read_cohort, write_cohort
from vesselgan.formats.shards import Manifest, Record, ShardInfo, read_manifest, write_manifest, write_shard

BYTES_PER_VOXEL = 3  # uint16 image and uint8 label


@dataclass(frozen=True)
class Records:
    """The records of one shard to come; their number is known before they are made, for messages about space."""

    shard: PlannedShard
    source: Source
    progress: Progress

    def __length_hint__(self) -> int:
        return self.shard.count

    def __iter__(self) -> Iterator[Record]:
        for record in self.source.records(self.shard):
            yield record
            self.progress.advance()


def build(config: BuildShards, here: World) -> None:
    """Build what is missing of the cohort's shards. The errors of vesselgan.core.errors, on all ranks together."""
    data = config.data
    cohort_dir = Path(data.cohort_dir)
    found = mpi.run_on_rank0(here, lambda: find_in(data))
    with lock.exclusive(here, cohort_dir / ".build_shards.lock"):
        cohort = settle_cohort(data, found, here)
        build_sets(config, cohort, here)


def find_in(data: PreparedData) -> CohortFiles:
    """The cohort's files; refuses what cannot end well before any file is made."""
    require_rules(data.prepare)
    paths.refuse(data.cohort_dir, "data.cohort_dir", data.root)
    patients_of(data)
    return find_subjects(data.root, data.layout, rename=pseudonyms.renamer(data))


def settle_cohort(data: PreparedData, found: CohortFiles, here: World) -> Cohort:
    """The cohort to build from: as an earlier start left it where nothing changed since, else checked now."""
    before = mpi.run_on_rank0(here, lambda: build_state.read(data))
    inputs = mpi.run_on_rank0(here, lambda: build_state.inputs_of(found, pseudonyms.renamer(data)))
    if before is not None and before.inputs == inputs and (data.prepare.quarantine or not before.set_aside):
        if (cohort := mpi.run_on_rank0(here, lambda: unchanged_cohort(data, before))) is not None:
            aside = f"; set aside: {', '.join(before.set_aside)}" if before.set_aside else ""
            tell(here, f"{data.name}: {len(cohort.subjects)} subjects, unchanged since they were checked{aside}")
            return cohort
    checked = check_cohort(data, found, here)
    tell(here, table(checked))

    def settle() -> Cohort:
        assigned = divide(checked, data)
        cohort = cohort_of(data, checked, assigned)
        stored_cohort(data)  # a newer program's is not written over
        if before is not None:
            build_state.check_unchanged(data, before, cohort)
        set_aside, contents = sorted(set(inputs) - set(assigned)), build_state.contents_of(cohort)
        build_state.write(data, State(data.name, build_state.settings_of(data), inputs, set_aside, contents))
        write_cohort(data.cohort_dir, cohort)
        tell(here, summary(checked, assigned))
        return cohort

    return mpi.run_on_rank0(here, settle)


def unchanged_cohort(data: PreparedData, before: State) -> Cohort | None:
    """cohort.json as it is; None when it must be made again. DataError when a CSV now divides it in another way."""
    cohort = stored_cohort(data)
    if cohort is None or build_state.contents_of(cohort) != before.contents:
        return None
    if not all(path.is_file() for path in paths_of(cohort)):
        return None
    known, rename = sorted(before.inputs), pseudonyms.renamer(data)
    assigned = assign(list(cohort.subjects), data.prepare.split, known=known, rename=rename)
    changed = {
        name: f"{s.split} -> {assigned[name]}" for name, s in cohort.subjects.items() if s.split != assigned[name]
    }
    if changed:
        raise DataError(
            f"{data.prepare.split.csv}: divides the cohort otherwise than its shards were built ({changed}); give this "
            f"build a data.cohort_dir of its own, or remove {data.cohort_dir}/shards"
        )
    return cohort


def stored_cohort(data: PreparedData) -> Cohort | None:
    """cohort.json; None when it is missing or damaged. NewerFormatError when it is a later program's."""
    try:
        return read_cohort(data.cohort_dir)
    except NewerFormatError:
        raise
    except DataError:
        return None


def paths_of(cohort: Cohort) -> list[Path]:
    """Every file that the cohort names."""
    return [p for s in cohort.subjects.values() for p in (s.image, s.label, s.mask) if p is not None]


def cohort_of(data: PreparedData, checked: CohortReport, assigned: dict[str, str]) -> Cohort:
    """What the check learned of the subjects that have a split."""
    subjects, prepare = {}, data.prepare
    values = None if prepare.label_values is None else tuple(prepare.label_values)
    reading = ReadOptions(prepare.nan_value, values, prepare.label_binarize_threshold)
    for finding in checked.findings:
        if finding.subject in assigned:
            subjects[finding.subject] = Subject(
                split=assigned[finding.subject],
                image=finding.files.image,
                label=finding.files.label,
                mask=finding.files.mask,
                shape=finding.header.shape,
                spacing_mm=finding.header.spacing_mm,
                limits=finding.limits,
                num_clipped=finding.num_clipped,
                image_sha256=finding.image_sha256,
                label_sha256=finding.label_sha256,
                reading=reading,
            )
    return Cohort(data.name, prepare.upper_percentile, subjects, prepare.pseudonymise)


def build_sets(config: BuildShards, cohort: Cohort, here: World) -> None:
    """Keep whole shards, build the others on all ranks, write the manifests."""
    data, started_s = config.data, time.monotonic()
    cohort_dir = Path(data.cohort_dir)
    shards = plan(cohort, data.prepare, config.purposes)
    if data.layout.label is None and shards:
        raise DataError(
            f"{data.root}: data.layout.label is null, but shards hold pairs of image and label; supply labels"
        )
    mpi.run_on_rank0(
        here, lambda: [manifest_in(cohort_dir / "shards" / p / s) for p, s in sets_of(shards)]
    )  # newer ones?
    finished = inspect_all(data, shards, here)
    missing = [shard for shard in shards if shard.name not in finished]
    mpi.run_on_rank0(here, lambda: require_space(data, missing))

    def build_mine() -> dict[str, ShardInfo]:
        built, source = {}, Source(cohort, data.prepare)
        with Progress(here, sum(s.count for s in missing), what="shards", unit="pair") as progress:
            for shard in mpi.partition(here, missing, weight=lambda shard: shard.count):
                path = build_state.shard_path(cohort_dir, shard)
                records = Records(shard, source, progress)
                info = write_shard(path, records, patch_shape=tuple(data.prepare.patch_shape), origin="real")
                build_state.note(cohort_dir, shard, info)
                built[shard.name] = info
        return built

    for part in mpi.together(here, build_mine):
        finished |= part
    written = mpi.run_on_rank0(here, lambda: write_manifests(data, cohort, shards, finished))
    for purpose, split in sets_of(shards):
        mine = [shard for shard in shards if (shard.purpose, shard.split) == (purpose, split)]
        new = sum(shard in missing for shard in mine)
        pairs = sum(shard.count for shard in mine)
        tell(
            here, f"{purpose}/{split}: {pairs} pairs in {len(mine)} shards ({new} built, {len(mine) - new} were there)"
        )
    what = "no subject in training or validation, so no shards; cohort.json is enough to test"
    if missing:
        what = f"built in {time.monotonic() - started_s:.1f} s"
    elif shards:
        what = f"manifests written anew: {', '.join(written)}" if written else "everything was there already"
    tell(here, f"{data.name}: {what}")


def inspect_all(data: PreparedData, shards: list[PlannedShard], here: World) -> dict[str, ShardInfo]:
    """Name -> entry of the shards that are whole. DataError for damaged ones, unless they are to be rebuilt."""
    cohort_dir = Path(data.cohort_dir)
    mine = mpi.together(
        here, lambda: {s.name: build_state.inspect(cohort_dir, s) for s in shards[here.rank :: here.size]}
    )
    states = {name: state for part in mine for name, state in part.items()}
    damaged = [states[shard.name] for shard in shards if isinstance(states[shard.name], str)]
    if damaged and not data.prepare.repair:
        raise DataError(f"{'; '.join(damaged)}; data.prepare.repair=true rebuilds what is damaged and nothing else")
    for problem in damaged:
        tell(here, f"rebuilding {problem}")
    return {name: state for name, state in states.items() if isinstance(state, ShardInfo)}


def require_space(data: PreparedData, missing: list[PlannedShard]) -> None:
    """ResourceError when the shards to come would not fit on the disk."""
    needed = sum(shard.count for shard in missing) * int(np.prod(data.prepare.patch_shape)) * BYTES_PER_VOXEL
    free = shutil.disk_usage(data.cohort_dir).free
    if needed > free:
        raise ResourceError(
            f"{data.cohort_dir}: the shards to come need {needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free; "
            "make room or move work_dir"
        )


def sets_of(shards: list[PlannedShard]) -> list[tuple[str, str]]:
    """(purpose, split) in order, each once."""
    return list(dict.fromkeys((shard.purpose, shard.split) for shard in shards))


def write_manifests(
    data: PreparedData, cohort: Cohort, shards: list[PlannedShard], finished: dict[str, ShardInfo]
) -> list[str]:
    """Make each set of shards readable: its manifest, unless it is there and says the same. The sets that got one."""
    written, patients = [], patients_of(data)
    for purpose, split in sets_of(shards):
        mine = [shard for shard in shards if (shard.purpose, shard.split) == (purpose, split)]
        folder = Path(data.cohort_dir) / "shards" / purpose / split
        subjects = {part.subject: cohort.subjects[part.subject] for shard in mine for part in shard.parts}
        spacings = [subject.spacing_mm for subject in subjects.values()]
        content = {
            "shards": tuple(finished[shard.name] for shard in mine),
            "patch_shape": tuple(data.prepare.patch_shape),
            "origin": "real",
            "subjects": {
                name: {
                    "spacing_mm": list(subject.spacing_mm),
                    "affine": volumes.read_header(subject.image).affine.tolist(),
                    "patient": patients[name],
                    "image_sha256": subject.image_sha256,
                }
                for name, subject in subjects.items()
            },
            "spacing_mm": tuple(float(s) for s in np.median(spacings, axis=0)),
            "upper_percentile": data.prepare.upper_percentile,
            "extra": {"cohort": data.name, "purpose": purpose, "split": split}
            | {"settings": build_state.settings_of(data)},
        }
        there = manifest_in(folder)
        if there is None or any(getattr(there, key) != value for key, value in content.items()):
            write_manifest(folder, **content)
            written.append(f"{purpose}/{split}")
    return written


def manifest_in(folder: Path) -> Manifest | None:
    """The manifest; None when it is missing or damaged. NewerFormatError when it is a later program's."""
    try:
        return read_manifest(folder)
    except NewerFormatError:
        raise
    except DataError:
        return None


def tell(here: World, text: str | None) -> None:
    """One message for the user, from rank 0."""
    if text and here.rank == 0:
        print(text, flush=True)


def main() -> None:
    """Entry of `python -m data_prep.build_shards`."""
    mpi.run(lambda: parse("build_shards", __doc__).config, build)


if __name__ == "__main__":
    main()
