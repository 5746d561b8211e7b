"""What was made from a subject: what has to go when somebody withdraws, and what cannot be recalled."""

import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from vesselgan.core.names import on_one_line
from vesselgan.formats.checkpoint_folder import CHECKPOINTS
from vesselgan.formats.run_dir import PROVENANCE, UNKNOWN, RunDir
from vesselgan.formats.shards import MANIFEST, content_hash, read_manifest, training_hashes
from vesselgan.formats.synthetic_volumes import SETTINGS, SyntheticVolumes
from vesselgan.release.identities import subjects_of
from vesselgan.release.ledger import Ledger


def describe(subject: str, root: Path, cohort_dir: str, work_dir: Path) -> str:
    """The artefacts made from a subject, or a patient of that id, a line each, and what to do.

    Of the ledger, and of all folders below cohort_dir and work_dir. root: the folder of releases. Raises DataError for
    a damaged ledger, manifest or record of a run or of samples.
    """
    places, name = [Path(cohort_dir), work_dir], on_one_line(subject)
    releases = [entry for entry in Ledger(root).entries() if _names(entry.subjects, subject)]
    shards = [folder for folder in _holding(MANIFEST, places) if _names(subjects_of(read_manifest(folder)), subject)]
    hashes = {content_hash(folder) for folder in shards} | {entry.data_set for entry in releases}
    all_runs = [RunDir(folder) for folder in _holding(PROVENANCE, places)]
    runs, samples = _made_from(hashes, all_runs, list(_holding(SETTINGS, places)))
    searched = " and ".join(map(str, places))
    if not (releases or shards or runs or samples):
        return f"{name}: nothing in {searched} was made from this subject; is the id right, and the cohort (data=)?"
    lines = [f"made from {name}, to be deleted:"]
    lines += [f"  shards   {folder}" for folder in shards]
    lines += [f"  run      {run.path}, with all that it made (synthetic/, predictions)" for run in runs]
    lines += [f"  samples  {folder}" for folder in samples]
    lines += [
        f"  release  {root / entry.name}, left on {entry.time}"
        + ("" if (root / entry.name).exists() else ", gone here")
        for entry in releases
    ]
    lines += [
        f"{run.path}: took over weights without a record (init_from), so that they are not the subject's is unknown"
        for run in all_runs
        if run not in runs and UNKNOWN in run.learned_from()
    ]
    if releases:
        lines.append("what left cannot be recalled: tell everybody who has a copy; SHA256SUMS tells which it is")
    lines.append("then leave the subject out, prepare the cohort again, and train, evaluate, audit and release anew")
    lines.append(f"searched: {searched}; look yourself for what was written elsewhere, and for volumes and results")
    return "\n".join(lines)


def _made_from(hashes: set[str], runs: list[RunDir], samples: list[Path]) -> tuple[list[RunDir], list[Path]]:
    """Those of the runs and of the folders of samples whose weights learned from one of these sets.

    Or from patches that such weights made, and so on.
    """
    made = [folder for folder in samples if hashes & training_hashes(SyntheticVolumes(folder).settings())]
    more = {content_hash(folder) for folder in made if (folder / MANIFEST).is_file()} - hashes
    return _made_from(hashes | more, runs, samples) if more else ([r for r in runs if hashes & r.learned_from()], made)


def _names(subjects: Mapping[str, str], name: str) -> bool:
    """Whether a subject, or its patient, is called so."""
    return _folded(name) in {_folded(known) for known in (*subjects, *subjects.values())}


def _folded(name: str) -> str:
    """One form of what looks alike."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _holding(file: str, places: list[Path]) -> Iterator[Path]:
    """The folders at or below `places` that hold a file of this name, once each, links followed."""
    seen: set[str] = set()
    for place in places:
        for folder, below, files in os.walk(place, followlinks=True):
            is_new = (real := os.path.realpath(folder)) not in seen
            seen.add(real)
            below[:] = sorted(set(below) - {CHECKPOINTS}) if is_new else []  # a checkpoint has a manifest of its own
            if is_new and file in files:
                yield Path(folder)
