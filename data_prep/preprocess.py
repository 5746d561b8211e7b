"""Denoise, correct, resample and mask a cohort's volumes, each step on request; over MPI; NIfTI in, NIfTI out.

    vesselgan preprocess data=pairs data.name=clinic data.root=/data/clinic
    mpiexec -n 8 python -m mpi4py -m vesselgan preprocess data=pairs data.name=clinic data.root=/data/clinic
    vesselgan preprocess data=phantom preprocess.spacing_mm=[0.5,0.5,0.7] preprocess.bias=false

Writes <cohort_dir>/preprocessed/<subject>/{image,vessel,brain_mask}.nii.gz, each with a JSON beside it that holds its
provenance. check and build_shards read them with preset=preprocessed in place of data.root. The same command resumes
a stopped run. The bytes do not depend on the number of ranks.
"""

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep import lock, mpi, pseudonyms, resolve_layout
from data_prep.check import check_label_settings
from data_prep.layouts import CohortFiles, SubjectFiles, hidden_files, without_paths
from data_prep.mpi import MpiWorld
from data_prep.output import PREPROCESSED, check_output_folder, write_json
from data_prep.pipeline import Pipeline, PipelineOutput, add_brain_mask, make_pipeline, run_pipeline
from vesselgan.config.compose import Command, parse
from vesselgan.config.overrides import flat_values
from vesselgan.config.schema import Preprocess
from vesselgan.core import atomic_io
from vesselgan.core.console import counted, differences, log
from vesselgan.core.errors import DataError, ResourceError, UsageError, check_readable
from vesselgan.core.names import path_in
from vesselgan.core.version import __version__
from vesselgan.formats import volumes
from vesselgan.formats.synthetic_volumes import origin_of

NAMES = {"image": "image", "label": "vessel", "mask": "brain_mask"}
SET_ASIDE = ".set_aside"  # hidden, so that no layout takes a subject from it
# Overrides that the output has behind it: the command that reads it must not repeat them.
CONSUMED = ("preprocess.", "out=", "preset=", "data.root=", "data.layout.", "data.prepare.label_", "data.prepare.nan_")


@dataclass(frozen=True)
class SubjectResult:
    """How the preprocessing of one subject ended."""

    subject: str
    fault: str | None
    warnings: tuple[str, ...] = ()


def preprocess(command: Command, world: MpiWorld) -> None:
    """Preprocess what is missing of the cohort. The errors of vesselgan.core.errors, on all ranks together."""
    config: Preprocess = command.config
    out, repair = Path(config.out), config.data.prepare.repair
    resolve_layout.resolve(config.data, world)
    cohort_files, pipeline = mpi.run_on_rank0(world, lambda: prepare(config))
    with lock.exclusive(world, out / ".preprocess.lock"):
        started_s = time.monotonic()
        mpi.run_on_rank0(world, lambda: check_settings(out, pipeline))
        if excluded := mpi.run_on_rank0(world, lambda: exclude_removed(out, cohort_files, repair)):
            log.info(excluded)
        missing = find_missing(out, cohort_files, pipeline, repair, world)
        mpi.run_on_rank0(world, lambda: record(out, pipeline, cohort_files, ()))
        results = mpi.map_items(
            world, missing, lambda subject: preprocess_subject(subject, pipeline, out), description="preprocess"
        )

        def report() -> None:
            check_results(config, cohort_files, results)
            record(out, pipeline, cohort_files, [result.subject for result in results if result.fault is not None])
            log.info(summary(out, cohort_files, results, time.monotonic() - started_s))
            log.info(next_command(config, command.overrides))

        mpi.run_on_rank0(world, report)


def prepare(config: Preprocess) -> tuple[CohortFiles, Pipeline]:
    """The cohort's files and what to do with them; raises before any file is written."""
    data = config.data
    check_output_folder(config.out, "out", data.root)
    check_label_settings(data.prepare)
    if origin_of(data.root) == "synthetic":
        raise UsageError(f"{data.root}: holds synthetic heads, which are like preprocessed volumes; build their shards")
    cohort_files = pseudonyms.files_of(data)
    return cohort_files, make_pipeline(config.preprocess, data.prepare, has_masks=data.layout.mask is not None)


def record(out: Path, pipeline: Pipeline, cohort_files: CohortFiles, set_aside: Sequence[str]) -> None:
    """Write the settings of this folder's volumes, and whose they are, so that a killed run is seen."""
    subjects = [subject.subject for subject in cohort_files.subjects]
    content = {"settings": pipeline.describe(), "subjects": subjects, "set_aside": list(set_aside)}
    write_json(out / PREPROCESSED, content)


def check_settings(out: Path, pipeline: Pipeline) -> None:
    """UsageError where the folder holds volumes of other settings, or something else."""
    path, settings = out / PREPROCESSED, json.loads(json.dumps(pipeline.describe()))
    remedy = f"name another folder (out=DIR), or remove {out}"
    try:
        stored = flat_values(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except FileNotFoundError:
        names = {entry.name for entry in out.iterdir() if not entry.name.startswith(".")}
        if names - {PREPROCESSED + atomic_io.PARTIAL}:
            raise UsageError(f"out={out} holds {min(names)} and no {PREPROCESSED}: not made here; {remedy}") from None
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check_readable(path, error)
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from error
    if changed := differences(stored, flat_values(settings)):
        raise UsageError(f"out={out} was made with other settings ({'; '.join(changed)}); {remedy}")


def find_missing(
    out: Path, cohort_files: CohortFiles, pipeline: Pipeline, repair: bool, world: MpiWorld
) -> list[SubjectFiles]:
    """The subjects to preprocess; DataError for outputs that changed or whose inputs did, unless `repair`."""
    subjects = cohort_files.subjects
    states = mpi.map_items(world, subjects, lambda s: inspect(out, s, pipeline), description="verify")
    problems = [state for state in states if isinstance(state, str)]
    if problems and not repair:
        raise DataError(f"{'; '.join(problems)}; data.prepare.repair=true makes them anew")
    return [subject for subject, state in zip(subjects, states, strict=True) if state is not True]


def inspect(out: Path, subject: SubjectFiles, pipeline: Pipeline) -> bool | str:
    """True: the output is complete; False: there is none; else what is wrong with it."""
    folder = path_in(out, subject.subject)
    if not folder.is_dir():
        return False
    kinds = ["image"] + ["label"] * (subject.label is not None) + ["mask"] * (pipeline.mask_tool != "none")
    try:
        for name in sorted(NAMES[kind] for kind in kinds):
            entry = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            if atomic_io.sha256_of(folder / f"{name}.nii.gz") != entry["output"]["sha256"]:
                return f"{folder / name}.nii.gz: its bytes changed since it was written"
            if name == "image" and entry["inputs"] != _inputs(subject, pipeline):
                return f"{folder}: the files of {subject.subject} changed since they were preprocessed"
    except FileNotFoundError as error:
        return f"{error.filename}: is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        check_readable(folder, error)
        return f"{folder}: cannot be read ({error})"
    return True


def exclude_removed(out: Path, cohort_files: CohortFiles, repair: bool) -> str | None:
    """Set aside the output of subjects that data.root no longer has, with `repair`; DataError without.

    check and build_shards would take them for current ones.
    """
    known = {subject.subject for subject in cohort_files.subjects}
    removed = [p for p in sorted(out.iterdir()) if p.is_dir() and not p.name.startswith(".") and p.name not in known]
    if not removed:
        return None
    names = ", ".join(path.name for path in removed)
    if not repair:
        raise DataError(
            f"{out}: holds output of {names}, and data.root has no such subject any more; bring the volumes back, or "
            f"data.prepare.repair=true moves it to {out / SET_ASIDE}"
        )
    return f"no longer in data.root: {names}" + "".join(set_aside(path) for path in removed)


def set_aside(folder: Path) -> str:
    """Move a subject's earlier output out of the cohort without losing it; returns a note for the message."""
    if not folder.exists():
        return ""
    number, target = 1, folder.parent / SET_ASIDE / folder.name
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}.{number}")
    try:
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be moved to {target} ({error.strerror}); remove it yourself") from error
    return f" (its earlier output: now {target})"


def preprocess_subject(subject: SubjectFiles, pipeline: Pipeline, out: Path) -> SubjectResult:
    """Write one subject's folder, complete or not at all. A fault of its files is returned: the others continue."""
    folder = path_in(out, subject.subject)
    partial = folder.with_name(f".{folder.name}{atomic_io.PARTIAL}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        partial.mkdir()  # raises for a link, through which it would write
        (partial / "scratch").mkdir()
        with hidden_files(subject, is_hidden=pipeline.prepare.pseudonymise):
            output = run_pipeline(subject, pipeline)
        _write_volume(partial / "image.nii.gz", output.image_XYZ, output, subject)
        add_brain_mask(output, pipeline, partial / "image.nii.gz", partial / "scratch")
        for kind, array_XYZ in (("label", output.label_XYZ), ("mask", output.mask_XYZ)):
            if array_XYZ is not None:
                _write_volume(partial / f"{NAMES[kind]}.nii.gz", array_XYZ, output, subject)
        shutil.rmtree(partial / "scratch")
        _write_provenance(partial, subject, output, pipeline)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except DataError as error:
        fault = without_paths(str(error), subject) if pipeline.prepare.pseudonymise else str(error)
        return SubjectResult(subject.subject, f"{fault}{set_aside(folder)}")
    except OSError as error:
        raise ResourceError(f"{folder}: {atomic_io.describe(error)}; make room and start again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return SubjectResult(subject.subject, None, tuple(output.warnings))


def check_results(config: Preprocess, cohort_files: CohortFiles, results: Sequence[SubjectResult]) -> None:
    """DataError that names every subject that could not be preprocessed; in quarantine only when none is left."""
    faults = [f"{result.subject}: {result.fault}" for result in results if result.fault is not None]
    num_subjects = len(cohort_files.subjects)
    if faults and (not config.data.prepare.quarantine or len(faults) == num_subjects):
        raise DataError(
            f"{len(faults)} of {num_subjects} subjects are unusable: {'; '.join(faults)}; the others are done; "
            "mend these, or set them aside with data.prepare.quarantine=true"
        )


def summary(out: Path, cohort_files: CohortFiles, results: Sequence[SubjectResult], seconds: float) -> str:
    """Warnings, subjects that were set aside, and counts."""
    done = [result for result in results if result.fault is None]
    lines = [f"warning: {warning}" for warning in cohort_files.warnings]
    lines += [f"warning {result.subject}: {warning}" for result in results for warning in result.warnings]
    lines += [f"set aside: {result.subject}: {result.fault}" for result in results if result.fault is not None]
    num_kept = len(cohort_files.subjects) - len(results)
    num_subjects = len(done) + num_kept
    lines.append(
        f"{out}: {counted(num_subjects, 'subject')} ({len(done)} made now in {seconds:.0f} s, {num_kept} were there)"
    )
    return "\n".join(lines)


def next_command(config: Preprocess, overrides: Sequence[str]) -> str:
    """The command that reads what was written."""
    kept = [override for override in overrides if not override.startswith(CONSUMED)]
    if any(o.startswith("preset=") for o in overrides) and not any(o.startswith("data=") for o in overrides):
        kept.insert(0, f"data={config.data.name}")  # the preset chose it, and there is room for one preset only
    is_default = Path(config.out) == Path(config.data.cohort_dir) / "preprocessed"
    kept += ["preset=preprocessed"] + ([] if is_default else [f"data.root={config.out}"])
    kept += ["data.layout.label=null"] if config.data.layout.label is None else []
    kept += ["data.layout.mask=null"] if config.preprocess.mask == "none" else []
    return f"continue with: vesselgan check {shlex.join(kept)}"


def _write_volume(path: Path, array_XYZ: np.ndarray, output: PipelineOutput, subject: SubjectFiles) -> None:
    """On the input's own grid, or on the new one (canonical)."""
    if output.grid is None:
        volumes.write_like(path, array_XYZ, subject.image)
    else:
        volumes.write_volume(path, array_XYZ, output.grid.affine)


def _write_provenance(folder: Path, subject: SubjectFiles, output: PipelineOutput, pipeline: Pipeline) -> None:
    """One JSON beside each volume, without the file names of the input: they may name a patient."""
    described, inputs = pipeline.describe(), _inputs(subject, pipeline)
    resampling = [step for step in output.steps if step["step"] == "resample"]
    steps = {
        "image": output.steps,
        "label": [{"step": "read", "parameters": described["reading"]}, *resampling],
        "mask": [{"step": "mask", **described["mask"]}, *(resampling if pipeline.mask_tool == "given" else [])],
    }
    for kind, name in NAMES.items():
        path = folder / f"{name}.nii.gz"
        if not path.is_file():
            continue
        header = volumes.read_header(path)
        entry = {
            "format": "vesselgan-preprocessed",
            "format_version": 1,
            "made_by": f"vesselgan {__version__}",
            "kind": kind,
            "steps": steps[kind],
            "inputs": inputs,
            "output": {
                "file": path.name,
                "sha256": atomic_io.sha256_of(path),
                "shape": list(header.shape),
                "spacing_mm": list(header.spacing_mm),
            },
        }
        write_json(folder / f"{name}.json", entry)


def _inputs(subject: SubjectFiles, pipeline: Pipeline) -> dict[str, str]:
    """Kind -> sha256 of the files that go in."""
    mask = subject.mask if pipeline.mask_tool == "given" else None
    inputs = {"image": subject.image, "label": subject.label, "mask": mask}
    return {kind: atomic_io.sha256_of(path) for kind, path in inputs.items() if path is not None}


def main() -> None:
    """Entry of `vesselgan preprocess`."""
    mpi.run(lambda: parse("preprocess", __doc__), preprocess)


if __name__ == "__main__":
    main()
