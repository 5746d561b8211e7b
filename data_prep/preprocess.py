"""Denoise, correct, resample and mask a cohort's volumes, each step on request; over MPI; NIfTI in, NIfTI out.

    python -m data_prep.preprocess data=pairs data.name=clinic data.root=/data/clinic
    mpiexec -n 8 python -m mpi4py -m data_prep.preprocess data=pairs data.name=clinic data.root=/data/clinic
    python -m data_prep.preprocess data=phantom preprocess.spacing_mm=[0.5,0.5,0.7] preprocess.bias=false

Writes <cohort_dir>/preprocessed/<subject>/{image,vessel,brain_mask}.nii.gz, each with a JSON beside it that says how it
was made and of what. check and build_shards read them with preset=preprocessed in place of data.root. A stopped start
goes on with the subjects that are missing; the bytes do not depend on the number of ranks.
"""

import json
import shlex
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import lock, mpi, pipeline, pseudonyms
from data_prep import paths as places
from data_prep.build_shards import tell
from data_prep.check import require_rules
from data_prep.layouts import CohortFiles, SubjectFiles, find_subjects, without_paths
from data_prep.mpi import Progress, World
from data_prep.pipeline import Outcome, Recipe
from data_prep.qc_results import mixed_spacings
from vesselgan.config.compose import Command, parse
from vesselgan.config.schema import Preprocess
from vesselgan.core import atomic_io
from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.core.version import __version__
from vesselgan.formats import volumes

SETTINGS = "preprocess.json"
NAMES = {"image": "image", "label": "vessel", "mask": "brain_mask"}
SET_ASIDE = ".set_aside"  # hidden, so that no layout takes a subject from it
# What check and build_shards must not be given again: the output has it behind it.
DONE_WITH = ("preprocess.", "out=", "preset=", "data.root=", "data.layout.", "data.prepare.label_", "data.prepare.nan_")


@dataclass(frozen=True)
class Done:
    """What one subject came to."""

    subject: str
    fault: str | None
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()


def preprocess(command: Command, here: World) -> None:
    """Preprocess what is missing of the cohort. The errors of vesselgan.core.errors, on all ranks together."""
    config: Preprocess = command.config
    out = Path(config.out)
    found, plan = mpi.run_on_rank0(here, lambda: prepare(config))
    with lock.exclusive(here, out / ".preprocess.lock"):
        started_s = time.monotonic()
        mpi.run_on_rank0(here, lambda: settle(out, plan))
        tell(here, mpi.run_on_rank0(here, lambda: exclude_removed(out, found, config.data.prepare.repair)))
        missing = missing_of(out, found, plan, config.data.prepare.repair, here)

        def work_on_mine() -> list[Done]:
            with Progress(here, len(missing), what="preprocess", unit="subject") as progress:
                return [work_on(subject, plan, out, progress) for subject in mpi.partition(here, missing)]

        done = [entry for part in mpi.together(here, work_on_mine) for entry in part]
        mpi.run_on_rank0(here, lambda: write_report(config, found, done))
        tell(here, summary(out, found, done, time.monotonic() - started_s))
        tell(here, mpi.run_on_rank0(here, lambda: spacing_warning(out, config.preprocess.spacing_mm)))
        tell(here, next_command(config, command.overrides))


def prepare(config: Preprocess) -> tuple[CohortFiles, Recipe]:
    """The cohort's files and what to do with them; refuses what cannot end well before any file is made."""
    data = config.data
    places.refuse(config.out, "out", data.root)
    require_rules(data.prepare)
    found = find_subjects(data.root, data.layout, rename=pseudonyms.renamer(data))
    return found, pipeline.choose(config.preprocess, data.prepare, has_masks=data.layout.mask is not None)


def settle(out: Path, plan: Recipe) -> None:
    """Remember how this folder's volumes are made; UsageError where it holds others or something else."""
    path, now = out / SETTINGS, json.loads(json.dumps(plan.described()))
    remedy = f"name another folder (out=DIR), or remove {out}"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        if set(there) - {SETTINGS + atomic_io.PARTIAL}:
            raise UsageError(f"out={out} holds {sorted(there)[0]} and no {SETTINGS}: not made here; {remedy}") from None
        _write_json(path, now)
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from error
    differing = sorted(_differences(stored, now))
    if differing:
        raise UsageError(f"out={out} was made in another way ({'; '.join(differing)}); {remedy}")


def missing_of(out: Path, found: CohortFiles, plan: Recipe, repair: bool, here: World) -> list[SubjectFiles]:
    """The subjects to work on; DataError for outputs that changed or whose inputs did, unless `repair`."""
    states = mpi.together(
        here, lambda: {f.subject: inspect(out, f, plan) for f in found.subjects[here.rank :: here.size]}
    )
    states = {subject: state for part in states for subject, state in part.items()}
    problems = [state for state in states.values() if isinstance(state, str)]
    if problems and not repair:
        raise DataError(f"{'; '.join(problems)}; data.prepare.repair=true makes them anew")
    return [subject for subject in found.subjects if states[subject.subject] is not True]


def inspect(out: Path, subject: SubjectFiles, plan: Recipe) -> bool | str:
    """True: there and whole; False: not there; else what is wrong with it."""
    folder = out / subject.subject
    if not folder.is_dir():
        return False
    expected = {"image"} | ({"label"} if subject.label else set()) | ({"mask"} if plan.mask_tool != "none" else set())
    try:
        for name in sorted(NAMES[kind] for kind in expected):
            entry = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            if atomic_io.sha256_of(folder / f"{name}.nii.gz") != entry["output"]["sha256"]:
                return f"{folder / name}.nii.gz: its bytes changed since it was written"
            if name == "image" and entry["inputs"] != _inputs(subject, plan):
                return f"{folder}: the files of {subject.subject} changed since they were preprocessed"
    except FileNotFoundError as error:
        return f"{error.filename}: is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder}: cannot be read ({error})"
    return True


def exclude_removed(out: Path, found: CohortFiles, repair: bool) -> str | None:
    """Set aside the output of subjects that data.root no longer has, on request; DataError without.

    check and build_shards would take them for current ones.
    """
    known = {subject.subject for subject in found.subjects}
    gone = [p for p in sorted(out.iterdir()) if p.is_dir() and not p.name.startswith(".") and p.name not in known]
    if not gone:
        return None
    names = ", ".join(path.name for path in gone)
    if not repair:
        raise DataError(
            f"{out}: holds output of {names}, and data.root has no such subject any more; bring the volumes back, or "
            f"data.prepare.repair=true moves it to {out / SET_ASIDE}"
        )
    return f"no longer in data.root: {names}" + "".join(set_aside(path) for path in gone)


def set_aside(folder: Path) -> str:
    """Take a subject's earlier output out of the cohort without losing it; what was done, in words."""
    if not folder.exists():
        return ""
    number, place = 1, folder.parent / SET_ASIDE / folder.name
    while place.exists():
        number += 1
        place = place.with_name(f"{folder.name}.{number}")
    try:
        place.parent.mkdir(exist_ok=True)
        folder.rename(place)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be moved to {place} ({error.strerror}); remove it yourself") from error
    return f" (its earlier output: now {place})"


def work_on(subject: SubjectFiles, plan: Recipe, out: Path, progress: Progress) -> Done:
    """Make one subject's folder, whole or not at all. A fault of its files is kept for the end: the others go on."""
    folder, partial = out / subject.subject, out / f".{subject.subject}{atomic_io.PARTIAL}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "scratch").mkdir(parents=True)
        outcome = pipeline.work_on(subject, plan)
        _write_image(partial / "image.nii.gz", outcome.image_XYZ, outcome, subject)
        pipeline.add_mask(outcome, plan, partial / "image.nii.gz", partial / "scratch")
        for kind, array_XYZ in (("label", outcome.label_XYZ), ("mask", outcome.mask_XYZ)):
            if array_XYZ is not None:
                _write_image(partial / f"{NAMES[kind]}.nii.gz", array_XYZ, outcome, subject)
        shutil.rmtree(partial / "scratch")
        _write_provenance(partial, subject, outcome, plan)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except DataError as error:
        fault = without_paths(str(error), subject) if plan.prepare.pseudonymise else str(error)
        return Done(subject.subject, f"{fault}{set_aside(folder)}", {})
    except OSError as error:
        raise ResourceError(f"{folder}: {atomic_io.describe(error)}; make room and start again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        progress.advance()
    return Done(subject.subject, None, outcome.seconds, tuple(outcome.warnings))


def write_report(config: Preprocess, found: CohortFiles, done: Sequence[Done]) -> None:
    """DataError that names every subject that could not be preprocessed; in quarantine only when none is left."""
    faults = [f"{entry.subject}: {entry.fault}" for entry in done if entry.fault is not None]
    if faults and (not config.data.prepare.quarantine or len(faults) == len(found.subjects)):
        raise DataError(
            f"{len(faults)} of {len(found.subjects)} subjects are unusable: {'; '.join(faults)}; the others are done; "
            "mend these, or set them aside with data.prepare.quarantine=true"
        )


def summary(out: Path, found: CohortFiles, done: Sequence[Done], seconds: float) -> str:
    """What was done, how long each step took, and who was set aside."""
    good = [entry for entry in done if entry.fault is None]
    lines = [f"warning: {warning}" for warning in found.warnings]
    lines += [f"warning {entry.subject}: {warning}" for entry in done for warning in entry.warnings]
    lines += [f"set aside: {entry.subject}: {entry.fault}" for entry in done if entry.fault is not None]
    kept = len(found.subjects) - len(done)
    lines.append(f"{out}: {len(good) + kept} subjects ({len(good)} made now in {seconds:.0f} s, {kept} were there)")
    steps = list(dict.fromkeys(step for entry in good for step in entry.seconds))
    medians = {s: statistics.median(entry.seconds[s] for entry in good if s in entry.seconds) for s in steps}
    if medians:
        lines.append("per subject, median: " + ", ".join(f"{step} {value:.1f} s" for step, value in medians.items()))
    return "\n".join(lines)


def spacing_warning(out: Path, spacing_mm: Sequence[float] | None) -> str | None:
    """What is to be said of the spacings that were kept, where none was asked for; of earlier starts' subjects too."""
    if spacing_mm is not None:
        return None
    paths = sorted(out.glob(f"[!.]*/{NAMES['image']}.nii.gz"))
    mixed = mixed_spacings(volumes.read_header(path).spacing_mm for path in paths)
    return f"warning: {mixed[0]}" if mixed else None


def next_command(config: Preprocess, words: Sequence[str]) -> str:
    """How to go on with what was written."""
    kept = [word for word in words if not word.startswith(DONE_WITH)]
    if any(word.startswith("preset=") for word in words) and not any(word.startswith("data=") for word in words):
        kept.insert(0, f"data={config.data.name}")  # the preset chose it, and there is room for one preset only
    is_default = Path(config.out) == Path(config.data.cohort_dir) / "preprocessed"
    kept += ["preset=preprocessed"] + ([] if is_default else [f"data.root={config.out}"])
    kept += ["data.layout.label=null"] if config.data.layout.label is None else []
    kept += ["data.layout.mask=null"] if config.preprocess.mask == "none" else []
    return f"go on with: python -m data_prep.check {shlex.join(kept)}"


def _write_image(path: Path, array_XYZ: Any, outcome: Outcome, subject: SubjectFiles) -> None:
    """On the input's own grid, or on the new one (canonical)."""
    if outcome.grid is None:
        volumes.write_like(path, array_XYZ, subject.image)
    else:
        volumes.write_volume(path, array_XYZ, outcome.grid.affine)


def _write_provenance(folder: Path, subject: SubjectFiles, outcome: Outcome, plan: Recipe) -> None:
    """One JSON beside each volume; file names of the input stand nowhere, they may name a patient."""
    described, inputs = plan.described(), _inputs(subject, plan)
    resampling = [step for step in outcome.steps if step["step"] == "resample"]
    steps = {
        "image": outcome.steps,
        "label": [{"step": "read", "parameters": described["reading"]}, *resampling],
        "mask": [{"step": "mask", **described["mask"]}, *(resampling if plan.mask_tool == "given" else [])],
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
        _write_json(folder / f"{name}.json", entry)


def _inputs(subject: SubjectFiles, plan: Recipe) -> dict[str, str]:
    """Kind -> sha256 of the files that go in."""
    mask = subject.mask if plan.mask_tool == "given" else None
    paths = {"image": subject.image, "label": subject.label, "mask": mask}
    return {kind: atomic_io.sha256_of(path) for kind, path in paths.items() if path is not None}


def _differences(stored: Any, now: Any, prefix: str = "") -> list[str]:
    if not (isinstance(stored, dict) and isinstance(now, dict)):
        return [] if stored == now else [f"{prefix}: {stored} -> {now}"]
    keys = sorted({*stored, *now})
    return [d for k in keys for d in _differences(stored.get(k), now.get(k), f"{prefix}.{k}" if prefix else k)]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        atomic_io.write_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); make room and start again") from error


def main() -> None:
    """Entry of `python -m data_prep.preprocess`."""
    mpi.run(lambda: parse("preprocess", __doc__), preprocess)


if __name__ == "__main__":
    main()
