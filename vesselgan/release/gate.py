"""Whether a release may leave: an audit of exactly these patches and this generator, and its verdict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vesselgan.core.console import log
from vesselgan.core.errors import DataError, PrivacyError, UsageError, reading
from vesselgan.evaluation.audit import RULE
from vesselgan.evaluation.audit_samples import patients_hash
from vesselgan.evaluation.reference import check_trained_on
from vesselgan.formats.results import Result, read_result
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.privacy.attacks.verdict import PASS, SIGNIFICANCE
from vesselgan.release.identities import subjects_of
from vesselgan.synthesis.sampler import TrainedGenerator

AGAIN = "remove it, and audit or evaluate again"
KEYS = {"verdict", "sentence", "count", "synthetic", "network", "planted", "resolution", "rule", "inputs", "name"}


def read_audit(path: str, sets: Sequence[ShardSet], training: ShardSet) -> Result:
    """The audit of `sets`, whose generators learned from `training`.

    Raises UsageError for another job's result, DataError for a damaged one or one with another training set, and
    PrivacyError for an audit of other patches, or by another rule.
    """
    audit = read_result(path)
    if audit.get("job") != "audit":
        raise UsageError(f"audit={path}: is a result of `{audit.get('job')}`; name one that `vesselgan audit` wrote")
    inputs = audit.get("inputs")
    if (missing := KEYS - set(audit)) or not isinstance(inputs, dict) or not isinstance(audit["planted"], list):
        raise DataError(
            f"{path}: lacks {', '.join(sorted(missing)) or 'its inputs or planted copies'}; remove it and audit again"
        )
    if inputs.get("training shards") != content_hash(training.folder):
        raise DataError(
            f"{path}: its training set is not {training.folder}, whose patients everything is searched for; name the "
            "cohort of the generator's training with data="
        )
    for one in sets:
        if note := check_trained_on(one.folder, one.manifest.extra, training):
            raise DataError(f"{one.folder}: {note}; generate and audit patches of a run that records it")
    audited = inputs.get("synthetic shards")
    if not isinstance(audited, list) or sorted(audited) != sorted(content_hash(one.folder) for one in sets):
        raise PrivacyError(
            f"{path}: audited other patches than {', '.join(str(one.folder) for one in sets)}; audit what is to leave, "
            "all of it together"
        )
    with reading(path, AGAIN):
        _check_record(audit, path, sets, training)
    return audit


def _check_record(audit: Result, path: str, sets: Sequence[ShardSet], training: ShardSet) -> None:
    """Raises PrivacyError unless rule, numbers, patients and the records of the patches are as in the audit."""
    made_by = dict(zip(audit["inputs"]["synthetic shards"], audit["synthetic"], strict=True))
    count = {"synthetic": sum(map(len, sets)), "training": len(training)}
    count["training_people"] = len(set(subjects_of(training).values()))
    differing = {
        "rule": audit["rule"] != RULE,
        "count": not count.items() <= audit["count"].items(),
        "training patients": audit["inputs"]["training patients"] != patients_hash(training),
        "synthetic": any(not one.manifest.extra.items() <= made_by[content_hash(one.folder)].items() for one in sets),
    }
    if any(differing.values()):
        raise PrivacyError(
            f"{path}: {', '.join(name for name in differing if differing[name])} not as they are now; audit again"
        )


def check_generator(trained: TrainedGenerator, sets: Sequence[ShardSet], run: str) -> None:
    """Raises PrivacyError unless all patches are this generator's, sampled as it is now, without noise of another."""
    now = (trained.weights_sha256, trained.sampling, None)
    for one in sets:
        made_by = one.manifest.extra
        if (made_by.get("weights_sha256"), made_by.get("sampling"), made_by.get("noise")) != now:
            raise PrivacyError(
                f"run={run}: {trained.checkpoint}, with the run's settings, is not what made {one.folder}, so nothing "
                "audited it; generate and audit its own patches, or leave run out"
            )


def open_gate(audit: Result, path: str, trained: TrainedGenerator | None, reason: str | None) -> list[str]:
    """Why the gate was closed and the reason opened it; empty if it is open.

    trained: a generator that leaves and is itself shown patients' patches, or their labels, in training. Raises
    PrivacyError for a closed gate without a reason, and where the audit did not attack that generator.
    """
    closed = [] if audit["verdict"] == PASS else [f"{audit['verdict']}: {audit['sentence']}"]
    if trained is not None:
        closed += _of_network(audit["network"], path, trained)
    if closed and reason is None:
        raise PrivacyError(
            f"{path}: {' '.join(closed)} Nothing was released; see what the audit needs, or state why it may leave all "
            'the same: reason="..." (it stands on the card)'
        )
    if reason is not None and not closed:
        log.info("the audit passed, so the reason is not needed and stands nowhere")
    return closed


def _of_network(network: dict[str, Any] | None, path: str, trained: TrainedGenerator) -> list[str]:
    """A flow's loss, or the critic that sees as much as the generator and more, is attacked before it may leave."""
    if network is None or network["weights_sha256"] != trained.weights_sha256:
        raise PrivacyError(
            f"{path}: the network itself, {trained.run}, {trained.checkpoint}, was not attacked: audit with run=RUN, "
            "or release its patches alone (synthetic=[DIR] without run)"
        )
    return [str(network["sentence"])] if network["p"] <= SIGNIFICANCE else []


def folders_of(synthetic: Sequence[str], run: str | None) -> list[Path]:
    """Raises UsageError if nothing is named."""
    if not synthetic and run is None:
        raise UsageError("release needs run=RUN, or synthetic=[DIR] that `vesselgan generate` wrote")
    return [Path(folder) for folder in synthetic] or [RunDir(str(run)).synthetic]
