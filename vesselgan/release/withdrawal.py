"""What was made from a subject: what has to go when somebody withdraws, and what cannot be recalled."""

from pathlib import Path

from vesselgan.core.errors import DataError, UsageError
from vesselgan.core.names import on_one_line
from vesselgan.formats.run_dir import PROVENANCE, RunDir
from vesselgan.formats.shards import MANIFEST, content_hash, read_manifest
from vesselgan.release.ledger import Ledger


def describe(subject: str, root: Path, cohort_dir: str, work_dir: Path) -> str:
    """The artefacts made from a subject, or a patient of that id, a line each, and what to do.

    root: the folder of releases. Raises DataError for a damaged ledger or manifest.
    """
    releases = Ledger(root).made_from(subject)
    shards = [path.parent for path in sorted(Path(cohort_dir).glob(f"shards/*/*/{MANIFEST}")) if _holds(path, subject)]
    hashes = {content_hash(folder) for folder in shards} | {entry.data_set for entry in releases}
    runs = _made_from(hashes, _runs(work_dir))
    name = on_one_line(subject)
    if not (releases or shards or runs):
        return f"{name}: nothing known here was made from this subject; is the id right, and the cohort (data=)?"
    lines = [f"made from {name}, to be deleted:"]
    lines += [f"  shards   {folder}" for folder in shards]
    lines += [f"  run      {run.path}, with all that it made (synthetic/, predictions)" for run in runs]
    lines += [
        f"  release  {root / entry.name}, left on {entry.time}"
        + ("" if (root / entry.name).exists() else ", gone here")
        for entry in releases
    ]
    if releases:
        lines.append("what left cannot be recalled: tell everybody who has a copy; SHA256SUMS tells which it is")
    lines.append("then leave the subject out, prepare the cohort again, and train, audit and release anew")
    return "\n".join(lines)


def _made_from(hashes: set[str], runs: list[RunDir]) -> list[RunDir]:
    """Runs that read one of these sets of shards, or the synthetic patches of such a run."""
    made = [run for run in runs if hashes & _inputs(run)]
    synthetic = {content_hash(run.synthetic) for run in made if (run.synthetic / MANIFEST).is_file()}
    return made if synthetic <= hashes else _made_from(hashes | synthetic, runs)


def _holds(path: Path, subject: str) -> bool:
    subjects = read_manifest(path.parent).subjects
    return subject in subjects or any(entry.get("patient") == subject for entry in subjects.values())


def _runs(work_dir: Path) -> list[RunDir]:
    return [RunDir(path.parent) for path in sorted((work_dir / "runs").glob(f"*/{PROVENANCE}"))]


def _inputs(run: RunDir) -> set[str]:
    """Content hashes of the shards that a run read; none where its record is damaged."""
    try:
        inputs = run.provenance().get("inputs")
    except (DataError, UsageError):
        return set()
    return {str(value) for value in inputs.values()} if isinstance(inputs, dict) else set()
