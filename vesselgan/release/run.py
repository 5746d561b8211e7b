"""`vesselgan release`: from audited patches and their generator to one folder that may leave."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Release
from vesselgan.core import locks
from vesselgan.core.atomic_io import sha256_of, sync_folder, write_text
from vesselgan.core.console import counted, log
from vesselgan.core.errors import UsageError, reading
from vesselgan.evaluation.reference import named_training_shards
from vesselgan.formats.cohort import COHORT, Cohort
from vesselgan.formats.nifti import SYNTHETIC
from vesselgan.formats.results import Result
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import PROCEDURAL_TREES, ShardSet, content_hash
from vesselgan.release import card, export, gate, withdrawal
from vesselgan.release.identities import find_identities, subjects_of
from vesselgan.release.ledger import Account, Entry, Ledger, accounts_of_patients, spent
from vesselgan.release.network import write_network
from vesselgan.release.scan import Scan
from vesselgan.synthesis.sampler import TrainedGenerator, read_generator

FOLDER, LOCK, CHECKSUMS, CARD = "release", "release.lock", "SHA256SUMS", "README.md"
BEING_WRITTEN = ".partial"


@dataclass(frozen=True)
class Sources:
    """What a release is made of; audited, and its gate open."""

    sets: list[ShardSet]
    training: ShardSet
    audit: Result
    trained: TrainedGenerator | None
    closed: list[str]
    """What closed the gate, where a reason opened it."""

    @property
    def privacy(self) -> dict[str, dict[str, Any] | None]:
        """Weights -> the account of their run, null without one. Patches of unknown weights count by their content."""
        extras = [(one.manifest.extra, content_hash(one.folder)) for one in self.sets]
        return {str(extra.get("weights_sha256") or content): extra.get("privacy") for extra, content in extras}

    @property
    def accounts(self) -> list[Account]:
        with reading(f"the account of {self.sets[0].folder}", gate.AGAIN):
            return [_account(weights, privacy) for weights, privacy in self.privacy.items()]


def release(config: Release) -> Path | None:
    """Writes WORK_DIR/release/NAME, completely or not at all, enters it in the ledger and returns it.

    With `config.withdraw` it prints what was made from that subject. Raises UsageError for what is not named or is
    there already, DataError for damage, PrivacyError for a closed gate and for a byte that names somebody,
    ResourceError while another release is being written.
    """
    root = Path(config.work_dir) / FOLDER
    if config.withdraw is not None:
        print(withdrawal.describe(config.withdraw, root, config.data.cohort_dir, Path(config.work_dir)))
        return None
    if config.audit is None:
        raise UsageError("release needs audit=FILE, the result of `vesselgan audit`")
    sources = _read_sources(config)
    lock = locks.acquire(root / LOCK)  # one release is written at a time
    try:
        return _release(config, sources, root)
    finally:
        locks.remove(root / LOCK, lock)


def _read_sources(config: Release) -> Sources:
    sets = [ShardSet(folder) for folder in gate.folders_of(config.synthetic, config.run)]
    if real := [one for one in sets if one.origin != "synthetic"]:
        raise UsageError(f"synthetic={real[0].folder}: holds real patches; name one that was generated")
    for one in sets:
        one.check_bytes()
    training = named_training_shards(config.data.cohort_dir)
    audit = gate.read_audit(str(config.audit), sets, training)
    trained = attacked = None
    if config.run is not None:
        made = sets[0].manifest.extra
        trained = read_generator(config.run, made.get("weights"), made.get("checkpoint"))
        gate.check_generator(trained, sets, config.run)
        variant = RunDir(config.run).config("train_gan").variant
        attacked = trained if variant.flow is not None or variant.condition is not None else None
    with reading(str(config.audit), gate.AGAIN):
        closed = gate.open_gate(audit, str(config.audit), attacked, config.reason)
    return Sources(sets, training, audit, trained, closed)


def _release(config: Release, sources: Sources, root: Path) -> Path:
    ledger, request = Ledger(root), _request(config, sources)
    name = config.name or f"synthetic-{hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]}"
    out, partial = root / name, root / (name + BEING_WRITTEN)
    before = ledger.last(name)
    if (before is None and out.exists()) or (before is not None and before.request != request):
        raise UsageError(f"name={name}: is another release ({ledger.path}), which stays as it was; choose another name")
    if before is not None and out.exists():
        log.info(f"{out}: already released, on {before.time}")
        return out
    shutil.rmtree(partial, ignore_errors=True)
    date = datetime.now(UTC)
    entry = Entry(
        name=name,
        time=date.isoformat(timespec="seconds"),
        accounts=sources.accounts,
        has_generator=sources.trained is not None,
        num_pairs=sum(map(len, sources.sets)),
        data_set=content_hash(sources.training.folder),
        subjects=subjects_of(sources.training),
        verdict=sources.audit["verdict"],
        reason=config.reason if sources.closed else None,
        request=request,
        checksums_sha256="",
    )
    earlier = [one for one in ledger.entries() if one.name != name]
    try:
        _write_content(partial, config, sources, entry, earlier, date.date().isoformat())
        _scan(config, sources, date.date().isoformat()).check(partial)
        checksums_sha256 = _write_checksums(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    # The ledger first: a release that it does not name must not exist.
    ledger.append(Entry(**{**vars(entry), "checksums_sha256": checksums_sha256}))
    os.rename(partial, out)
    sync_folder(root)
    log.info(f"{out}: {counted(entry.num_pairs, 'pair')}, audit: {entry.verdict}; entered in {ledger.path}")
    return out


def _request(config: Release, sources: Sources) -> dict[str, Any]:
    return {
        "patches": [content_hash(one.folder) for one in sources.sets],
        "generator": None if sources.trained is None else sources.trained.weights_sha256,
        "license": config.license,
        "reason": config.reason,
    }


def _write_content(
    folder: Path, config: Release, sources: Sources, entry: Entry, earlier: Sequence[Entry], date: str
) -> None:
    files = export.write_pairs(folder, sources.sets)
    for one in sources.sets:
        one.check_bytes()  # again: they may have changed while they were read
    export.write_descriptions(folder, entry.name, files, config.license)
    if sources.trained is not None:
        threshold = sources.sets[0].label_threshold or sources.trained.label_threshold
        write_network(folder / export.NETWORK, sources.trained, str(config.run), threshold)
    with reading(f"{config.audit} or a result in {config.results}", gate.AGAIN):
        text = card.write(_facts(config, sources, entry, earlier, date))
    write_text(folder / CARD, text)
    export.write_croissant(folder, entry.name, date, config.license, card.LIMITS)


def _facts(config: Release, sources: Sources, entry: Entry, earlier: Sequence[Entry], date: str) -> card.Facts:
    sets, weights = sources.sets, list(sources.privacy)
    contents = [content_hash(one.folder) for one in sets]
    run = None if config.run is None else RunDir(config.run).config("train_gan")
    return card.Facts(
        name=entry.name,
        date=date,
        license=config.license,
        reason=entry.reason,
        closed=sources.closed,
        num_pairs=entry.num_pairs,
        patch_shape=sets[0].patch_shape,
        spacing_mm=sets[0].spacing_mm,
        label_thresholds=sorted({one.label_threshold for one in sets if one.label_threshold is not None}),
        audit=sources.audit,
        spent=spent(entry.accounts),
        spent_in_all=spent(accounts_of_patients(earlier, entry)),
        num_releases=1 + sum(one.shares_a_patient(entry) for one in earlier),
        is_seed_known=any(one is not None and not one.get("is_key_secret", True) for one in sources.privacy.values()),
        generator=None if run is None else run.variant.name,
        is_label_given=run is not None and run.variant.condition is not None,
        are_trees_procedural=all(one.manifest.extra.get(PROCEDURAL_TREES) for one in sets),
        is_phantom=_is_phantom(config.data.cohort_dir),
        scores=card.scores_of(config.results, contents, weights),
    )


def _scan(config: Release, sources: Sources, date: str) -> Scan:
    places: list[str | Path] = [config.work_dir, config.data.cohort_dir, Path.home(), Path.cwd()]
    identities = find_identities(config.data.cohort_dir, places, own_words())
    log.info(
        f"searching every byte for {counted(len(identities.terms), 'name')} of patients, people, places and machines, "
        f"for paths, dates and the origins of {counted(len(identities.origins), 'real volume')}"
    )
    if identities.skipped:
        log.info(
            f"note: not searched for, as too short or a word of every release: {', '.join(identities.skipped[:8])}"
            + (f" and {len(identities.skipped) - 8} more" if len(identities.skipped) > 8 else "")
        )
    return Scan(identities, export.grid_of(sources.sets), SYNTHETIC, date)


def own_words() -> frozenset[str]:
    """Words of every release: of this package's own texts."""
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py")]
    return frozenset(re.findall(r"[a-z0-9]+", " ".join(texts).casefold()))


def _account(weights: str, privacy: dict[str, Any] | None) -> Account:
    if privacy is None or not privacy.get("is_key_secret", True):
        return Account(weights, None)
    values = float(privacy["epsilon"]), float(privacy["delta"]), str(privacy["unit"])
    return Account(weights, *values, privacy.get("epsilon_patient"))


def _write_checksums(folder: Path) -> str:
    """Writes CHECKSUMS, as `sha256sum` reads it, makes everything durable and returns the file's own sha256."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_of(path)}  {path.relative_to(folder)}\n" for path in paths]
    write_text(folder / CHECKSUMS, "".join(lines))
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync_folder(path)
    return sha256_of(folder / CHECKSUMS)


def _is_phantom(cohort_dir: str) -> bool:
    return (Path(cohort_dir) / COHORT).is_file() and Cohort.read(cohort_dir).is_phantom
