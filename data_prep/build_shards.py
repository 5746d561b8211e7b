"""Cut a cohort into verified shards of paired patches: check, split by subject, scale, cut, write; over MPI.

    vesselgan build-shards data=phantom
    mpiexec -n 2 python -m mpi4py -m vesselgan build-shards data=phantom
    vesselgan build-shards data=pairs data.name=clinic data.root=/data/clinic data.prepare.repair=true

Writes <cohort_dir>/cohort.json, shards/gan/train, shards/unet/train and shards/unet/validation. Killed at any moment it
leaves nothing that looks complete, and the next run builds only what is missing. The bytes do not depend on the number
of ranks. Each rank holds one subject's voxels at a time.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_prep import build_state, lock, mpi, pseudonyms, resolve_layout
from data_prep.build_state import BuildState
from data_prep.check import assign_splits, check_cohort, check_label_settings
from data_prep.layouts import LEFT_OUT, CohortFiles
from data_prep.mpi import MpiWorld, ProgressBar
from data_prep.output import check_output_folder
from data_prep.patches import padded_shape
from data_prep.patients import in_several_splits, patients_of
from data_prep.qc_results import CohortReport, summary, table
from data_prep.shard_plan import PatchExtractor, PlannedShard, plan_shards
from data_prep.splits import assign
from vesselgan.config.compose import parse
from vesselgan.config.schema import BuildShards, Prepare, PreparedData
from vesselgan.core.console import counted, log
from vesselgan.core.errors import DataError, NewerFormatError, ResourceError, UsageError
from vesselgan.core.memory import format_bytes
from vesselgan.formats.cohort import Cohort, ReadOptions, Subject, shards_dir
from vesselgan.formats.shards import Record, ShardInfo, read_manifest, write_manifest, write_shard
from vesselgan.formats.synthetic_volumes import generation_of, origin_of

Result = TypeVar("Result")

MIN_VESSEL_SHARE = 0.2
"""Of the GAN's patches, that are centred on vessels; the paper's: 0.64."""
BYTES_PER_VOXEL = 5  # uint16 image, uint8 label, and a float16 score or a uint8 tissue map


@dataclass(frozen=True)
class ShardRecords:
    """The records of one shard to come; their number is known before they are made, for messages about space."""

    shard: PlannedShard
    extractor: PatchExtractor
    progress: ProgressBar

    def __length_hint__(self) -> int:
        return self.shard.count

    def __iter__(self) -> Iterator[Record]:
        for record in self.extractor.records(self.shard):
            yield record
            self.progress.update()


def build(config: BuildShards, world: MpiWorld) -> None:
    """Build what is missing of the cohort's shards. The errors of vesselgan.core.errors, on all ranks together."""
    data = config.data
    resolve_layout.resolve(data, world)
    purposes_of(config)  # refused before anything is written
    cohort_files = mpi.run_on_rank0(world, lambda: find_cohort(data))
    with lock.exclusive(world, Path(data.cohort_dir) / ".build_shards.lock"):
        cohort = resolve_cohort(data, cohort_files, world)
        build_missing(config, cohort, world)


def purposes_of(config: BuildShards) -> list[str]:
    """Of synthetic heads the U-Net's alone: no generator learns from a generator's. UsageError without it."""
    purposes, root = config.purposes, config.data.root
    if origin_of(root) == "real":
        return purposes
    if "unet" not in purposes:
        raise UsageError(f"purposes={purposes}: {root} holds synthetic heads, which are for U-Nets: name unet")
    return ["unet"]


def find_cohort(data: PreparedData) -> CohortFiles:
    """The cohort's files; raises for wrong settings before any file is written."""
    check_label_settings(data.prepare)
    check_output_folder(data.cohort_dir, "data.cohort_dir", data.root)
    patients_of(data)
    return pseudonyms.files_of(data)


def resolve_cohort(data: PreparedData, cohort_files: CohortFiles, world: MpiWorld) -> Cohort:
    """The cohort to build from: as an earlier run left it where nothing changed since, else checked now."""
    state = mpi.run_on_rank0(world, lambda: build_state.read_state(data))
    inputs = mpi.run_on_rank0(world, lambda: build_state.inputs_of(cohort_files, pseudonyms.renamer(data)))
    if state is not None and state.inputs == inputs and (data.prepare.quarantine or not state.set_aside):
        unchanged = mpi.run_on_rank0(world, lambda: unchanged_cohort(data, state))
        if unchanged is not None:
            aside = f"; set aside: {', '.join(state.set_aside)}" if state.set_aside else ""
            who = counted(len(unchanged.subjects), "subject")
            log.info(f"{data.name}: {who}, unchanged since they were checked{aside}")
            return unchanged
    report = check_cohort(data, cohort_files, world)
    log.info(table(report))

    def resolve() -> Cohort:
        assigned = assign_splits(report, data)
        check_labels_named(data, report, assigned)
        cohort = make_cohort(data, report, assigned)
        read_if_valid(Cohort.read, Path(data.cohort_dir))  # refuses to write over a newer program's
        if state is not None:
            build_state.check_unchanged(data, state, cohort)
        set_aside, contents = sorted(set(inputs) - set(assigned)), build_state.contents_of(cohort)
        settings = build_state.settings_of(data)
        build_state.write_state(data, BuildState(data.name, settings, inputs, set_aside, contents))
        cohort.write(data.cohort_dir)
        log.info(summary(report, assigned))
        return cohort

    return mpi.run_on_rank0(world, resolve)


def check_labels_named(data: PreparedData, report: CohortReport, assigned: dict[str, str]) -> None:
    """DataError where patches would be cut and no label was found."""
    if data.layout.label is not None or not {"train", "validation"} & set(assigned.values()):
        return
    unread = next((f"; {text}" for text in report.warnings if text.startswith(LEFT_OUT)), "")
    raise DataError(
        f"{data.root}: shards hold pairs of image and label, and no label was found (data.layout.label says how they "
        f"are named, see data_prep/README.md){unread}"
    )


def few_vessel_patches(cohort: Cohort, prepare: Prepare, shards: list[PlannedShard]) -> str | None:
    """The GAN's patches are mostly of the grid: in small ones there is rarely a vessel."""
    subjects = sum(subject.split == "train" for subject in cohort.subjects.values())
    pairs = sum(shard.count for shard in shards if shard.purpose == "gan")
    centred, number = subjects * prepare.num_vessel_patches_gan, prepare.num_vessel_patches_gan
    if not pairs or centred >= MIN_VESSEL_SHARE * pairs:
        return None
    as_many = round((pairs - centred) / subjects)
    return (
        f"{centred:,} of {pairs:,} patches for the GAN are centred on vessels; most others show none, and it may learn "
        f"to draw none: data.prepare.num_vessel_patches_gan={as_many} instead of {number} makes it half"
    )


def unchanged_cohort(data: PreparedData, state: BuildState) -> Cohort | None:
    """cohort.json as it is, with the patients as they are named now; None when it must be made again.

    DataError when a CSV now divides it in another way, or a patient.
    """
    cohort = read_if_valid(Cohort.read, Path(data.cohort_dir))
    if cohort is None or build_state.contents_of(cohort) != state.contents:
        return None
    files = [path for s in cohort.subjects.values() for path in (s.image, s.label, s.mask) if path is not None]
    if not all(path.is_file() for path in files):
        return None
    known, rename = sorted(state.inputs), pseudonyms.renamer(data)
    assigned = assign(list(cohort.subjects), data.prepare.split, known=known, rename=rename)
    changed = {
        name: f"{s.split} -> {assigned[name]}" for name, s in cohort.subjects.items() if s.split != assigned[name]
    }
    if changed:
        raise DataError(
            f"{data.prepare.split.csv}: divides the cohort otherwise than its shards were built ({changed}); give this "
            f"build a data.cohort_dir of its own, or remove {data.cohort_dir}/shards"
        )
    patients = patients_of(data)
    if leaks := in_several_splits(patients, assigned):
        raise DataError("; ".join(leaks))
    subjects = {name: replace(subject, patient=patients[name]) for name, subject in cohort.subjects.items()}
    if subjects != cohort.subjects:
        cohort = replace(cohort, subjects=subjects)
        cohort.write(data.cohort_dir)
    return cohort


def read_if_valid(read: Callable[[Path], Result], folder: Path) -> Result | None:
    """None for a file that is missing or damaged. NewerFormatError when it is a later program's."""
    try:
        return read(folder)
    except NewerFormatError:
        raise
    except DataError:
        return None


def make_cohort(data: PreparedData, report: CohortReport, assigned: dict[str, str]) -> Cohort:
    """The cohort of the subjects that have a split."""
    subjects, prepare, patients = {}, data.prepare, patients_of(data)
    values = None if prepare.label_values is None else tuple(prepare.label_values)
    reading = ReadOptions(prepare.nan_value, values, prepare.label_binarize_threshold)
    for result in report.results:
        if result.subject not in assigned:
            continue
        header, limits, num_clipped, sha256 = result.header, result.limits, result.num_clipped, result.image_sha256
        assert header is not None and limits is not None and num_clipped is not None and sha256 is not None
        subjects[result.subject] = Subject(
            split=assigned[result.subject],
            image=result.files.image,
            label=result.files.label,
            mask=result.files.mask,
            shape=header.shape,
            spacing_mm=header.spacing_mm,
            limits=limits,
            num_clipped=num_clipped,
            image_sha256=sha256,
            label_sha256=result.label_sha256,
            mask_sha256=result.mask_sha256,
            patient=patients[result.subject],
            reading=reading,
            pseudonym=result.subject if prepare.pseudonymise else None,
        )
    return Cohort(data.name, prepare.percentiles, subjects, prepare.pseudonymise)


def build_missing(config: BuildShards, cohort: Cohort, world: MpiWorld) -> None:
    """Keep complete shards, build the others on all ranks, write the manifests."""
    data, started_s = config.data, time.monotonic()
    shards = plan_shards(cohort, data.prepare, purposes_of(config))
    if (few := few_vessel_patches(cohort, data.prepare, shards)) and world.rank == 0:
        log.warning(few)
    sets = group_by_set(shards)
    # Raises NewerFormatError before anything is written.
    mpi.run_on_rank0(world, lambda: [read_if_valid(read_manifest, shards_dir(data.cohort_dir, *key)) for key in sets])
    finished = inspect_shards(data, shards, world)
    missing = [shard for shard in shards if shard.name not in finished]
    mpi.run_on_rank0(world, lambda: check_space(data, missing))
    for built in mpi.gather_results(world, lambda: build_mine(data, cohort, missing, world)):
        finished |= built
    written = mpi.run_on_rank0(world, lambda: write_manifests(data, cohort, sets, finished))
    for (purpose, split), members in sets.items():
        num_pairs, num_built = sum(shard.count for shard in members), sum(shard in missing for shard in members)
        counts = f"{num_built} built, {len(members) - num_built} were there"
        log.info(f"{purpose}/{split}: {counted(num_pairs, 'pair')} in {counted(len(members), 'shard')} ({counts})")
    if missing:
        outcome = f"built in {time.monotonic() - started_s:.1f} s"
    elif not shards:
        outcome = "no subject in training or validation, so no shards; cohort.json is enough to test"
    else:
        outcome = f"manifests written anew: {', '.join(written)}" if written else "everything was there already"
    log.info(f"{data.name}: {outcome}")


def build_mine(
    data: PreparedData, cohort: Cohort, missing: list[PlannedShard], world: MpiWorld
) -> dict[str, ShardInfo]:
    """Write this rank's slice of the missing shards; name -> entry."""
    cohort_dir, (x, y, z) = Path(data.cohort_dir), data.prepare.patch_shape
    origin = origin_of(data.root)
    built, extractor = {}, PatchExtractor(cohort, data.prepare, is_synthetic=origin == "synthetic")
    num_pairs = sum(shard.count for shard in missing)
    with ProgressBar(world, num_pairs, description="shards", unit="pair") as progress:
        for shard in mpi.partition(world, missing, weight=lambda shard: shard.count):
            records = ShardRecords(shard, extractor, progress)
            path = build_state.shard_path(cohort_dir, shard)
            info = write_shard(path, records, patch_shape=(x, y, z), origin=origin)
            build_state.record_shard(cohort_dir, shard, info)
            built[shard.name] = info
    return built


def inspect_shards(data: PreparedData, shards: list[PlannedShard], world: MpiWorld) -> dict[str, ShardInfo]:
    """Name -> entry of the complete shards. DataError for damaged ones, unless they are to be rebuilt."""
    cohort_dir = Path(data.cohort_dir)
    states = mpi.map_items(
        world, shards, lambda shard: build_state.inspect_shard(cohort_dir, shard), description="verify", unit="shard"
    )
    problems = [state for state in states if isinstance(state, str)]
    if problems and not data.prepare.repair:
        raise DataError(f"{'; '.join(problems)}; data.prepare.repair=true rebuilds what is damaged and nothing else")
    for problem in problems:
        log.info(f"rebuilding {problem}")
    return {shard.name: s for shard, s in zip(shards, states, strict=True) if isinstance(s, ShardInfo)}


def check_space(data: PreparedData, missing: list[PlannedShard]) -> None:
    """ResourceError when the missing shards would not fit on the disk."""
    needed = sum(shard.count for shard in missing) * int(np.prod(data.prepare.patch_shape)) * BYTES_PER_VOXEL
    free = shutil.disk_usage(data.cohort_dir).free
    if needed > free:
        raise ResourceError(
            f"{data.cohort_dir}: the shards to come need {format_bytes(needed)}, {format_bytes(free)} are free; "
            "make room or move work_dir"
        )


def group_by_set(shards: list[PlannedShard]) -> dict[tuple[str, str], list[PlannedShard]]:
    """(purpose, split) -> its shards, in order."""
    sets: dict[tuple[str, str], list[PlannedShard]] = {}
    for shard in shards:
        sets.setdefault((shard.purpose, shard.split), []).append(shard)
    return sets


def write_manifests(
    data: PreparedData,
    cohort: Cohort,
    sets: dict[tuple[str, str], list[PlannedShard]],
    finished: dict[str, ShardInfo],
) -> list[str]:
    """Write the manifest of each set of shards unless it is there and says the same. Returns the sets that got one."""
    written = []
    for (purpose, split), shards in sets.items():
        subjects = {r.subject: cohort.subjects[r.subject] for shard in shards for r in shard.ranges}
        spacing_mm = np.median([subject.spacing_mm for subject in subjects.values()], axis=0)
        content: dict[str, Any] = {
            "shards": tuple(finished[shard.name] for shard in shards),
            "patch_shape": tuple(data.prepare.patch_shape),
            "origin": origin_of(data.root),
            "subjects": {
                name: {
                    "spacing_mm": list(subject.spacing_mm),
                    "affine": subject.read_header().affine.tolist(),
                    "shape": list(padded_shape(subject.shape, data.prepare.patch_shape)),
                    "patient": subject.patient,
                    "image_sha256": subject.image_sha256,
                }
                for name, subject in subjects.items()
            },
            "spacing_mm": tuple(float(s) for s in spacing_mm),
            "percentiles": data.prepare.percentiles,
            "extra": {"cohort": data.name, "purpose": purpose, "split": split}
            | {"settings": build_state.settings_of(data)}
            | generation_of(data.root),
        }
        folder = shards_dir(data.cohort_dir, purpose, split)
        existing = read_if_valid(read_manifest, folder)
        if existing is None or any(getattr(existing, key) != value for key, value in content.items()):
            write_manifest(folder, **content)
            written.append(f"{purpose}/{split}")
    return written


def main() -> None:
    """Entry of `vesselgan build-shards`."""
    mpi.run(lambda: parse("build_shards", __doc__).config, build)


if __name__ == "__main__":
    main()
