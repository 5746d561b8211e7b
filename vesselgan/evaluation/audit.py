"""The audit of what is to leave: can patients of the training set be recognised in synthetic patches or whole heads?

Every synthetic one is compared with all training ones and with held-out ones of other people, by image, vessel label
and centreline: tests for copies, attacks on membership, each with its control, and copies planted to measure what this
audit of this very set would find. The verdict is about copies and membership alone; a guarantee is differential
privacy's.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vesselgan.config.schema import Audit
from vesselgan.core.console import log
from vesselgan.core.errors import PrivacyError
from vesselgan.evaluation.audit_samples import patients_hash
from vesselgan.evaluation.audit_sets import AuditSets, read_sets
from vesselgan.evaluation.audit_spaces import SpaceDistances, SpaceFindings, find, measure
from vesselgan.evaluation.audit_tables import tables
from vesselgan.evaluation.features import open_extractor
from vesselgan.evaluation.network_scores import AttackedNetwork
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.results import Result, check_replaceable, write_result
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import content_hash
from vesselgan.privacy.attacks import copies, neighbours, verdict
from vesselgan.privacy.attacks.linkage import NOT_APPLICABLE
from vesselgan.privacy.attacks.membership import attack
from vesselgan.privacy.attacks.planted import SPACES, found_of
from vesselgan.privacy.attacks.verdict import PASS, SIGNIFICANCE, Evidence, Verdict, conclude, if_it_left, worst
from vesselgan.runtime.distributed import choose_device
from vesselgan.runtime.provenance import collect

NUM_LISTED = 20  # pairs in the result's `nearest`
RULE = {
    "significance": SIGNIFICANCE,
    "share": copies.SHARE,
    "least_power": copies.LEAST_POWER,
    "verbatim": neighbours.VERBATIM,
    "min_people": verdict.MIN_PEOPLE,
}
"""Of the verdict."""


def audit(config: Audit) -> Result:
    """Audits `config.synthetic`, or the patches of `config.run`, writes the result to `config.out` and prints it.

    Raises PrivacyError, exit 7, after writing unless the verdict is `pass`, is only recorded or is overridden. Other
    errors: see `read_sets` and `AttackedNetwork`.
    """
    check_replaceable(config.out)
    sets = read_sets(config)
    network, image = _attack_network(config, sets), config.image
    extractor = None
    if image.extractor is not None:
        extractor = open_extractor(image.extractor, image.weights, image.weights_sha256, config.seed)
    measured = measure(sets, extractor, choose_device(config.runtime.device, 0), seed=config.seed)
    spaces = _find(measured, sets, config.seed)
    result = _result(config, sets, spaces, _verdicts(sets, measured, spaces, config.seed))
    result |= {"network": network, "extractor": None if extractor is None else extractor.record}
    write_result(config.out, result)
    print(tables(result))
    if network is not None:
        log.info(network["sentence"])
    for note in result["notes"]:
        log.info(f"note: {note}")
    log.info(f"wrote {config.out}")
    _check_gate(config, result)
    return result


def _find(measured: dict[str, SpaceDistances], sets: AuditSets, seed: int) -> dict[str, SpaceFindings]:
    """The tests for copies share a significance (Bonferroni)."""
    share = SIGNIFICANCE / len(measured)
    return {space: find(one, sets, seed=seed, significance=share) for space, one in measured.items()}


def _verdicts(
    sets: AuditSets, measured: dict[str, SpaceDistances], spaces: dict[str, SpaceFindings], seed: int
) -> list[Verdict]:
    """One for each synthetic set."""
    if len(sets.rows) == 1:
        return [conclude(_evidence(sets, spaces))]
    alone = [{space: one.of(rows) for space, one in measured.items()} for rows in sets.rows]
    return [conclude(_evidence(sets, _find(one, sets, seed))) for one in alone]


def _evidence(sets: AuditSets, spaces: dict[str, SpaceFindings]) -> Evidence:
    tests = {space: findings.copies for space, findings in spaces.items()}
    kinds = dict.fromkeys(kind for of_space in SPACES.values() for kind in of_space)
    planted = []
    for kind in kinds:
        values = {
            space: findings.planted.get(kind, np.empty(0))
            for space, findings in spaces.items()
            if kind in SPACES.get(space, ())
        }
        planted.append(found_of(kind, values, tests))
    image = spaces["image"]
    return Evidence(
        synthetic=len(image.distance_N),
        training=len(sets.training),
        held_out=len(sets.held_out),
        training_people=len(set(sets.training_patients)),
        held_out_people=len(set(sets.held_out_patients)),
        verbatim=int((image.distance_N < neighbours.VERBATIM).sum()),
        is_shared=image.is_shared,
        copies=tests,
        attacks={
            (space, name): found for space, findings in spaces.items() for name, found in findings.attacks.items()
        },
        planted=planted,
        linkage={space: findings.linkage for space, findings in spaces.items() if findings.linkage is not None},
        samples=sets.kind.plural,
    )


def _result(config: Audit, sets: AuditSets, spaces: dict[str, SpaceFindings], verdicts: Sequence[Verdict]) -> Result:
    """verdicts: of each synthetic set."""
    evidence = _evidence(sets, spaces)
    found = worst(conclude(evidence), verdicts)
    adjusted = evidence.adjusted()
    pointed_at = set.union(*(findings.pointed_at for findings in spaces.values()))
    names = ("synthetic", "training", "held_out", "training_people", "held_out_people", "verbatim")
    return {
        "job": "audit",
        "name": config.name or ", ".join(sets.runs),
        "cohort": Cohort.name_in(config.data.cohort_dir, config.data.name),
        "split": config.reference,
        "samples": sets.kind.plural,
        **asdict(found),
        "count": {name: getattr(evidence, name) for name in names},
        "spaces": {
            space: {
                "copies": asdict(findings.copies),
                "attacks": {
                    name: {**asdict(one), "p_holm": adjusted[space, name]} for name, one in findings.attacks.items()
                },
                "patients": [asdict(patient) for patient in findings.patients],
                "nearest": _nearest(findings),
            }
            for space, findings in spaces.items()
        },
        "planted": [{**asdict(one), "share_found": one.share_found} for one in evidence.planted],
        "linkage": {space: asdict(one) for space, one in evidence.linkage.items()} or NOT_APPLICABLE,
        "resolution": _resolution(evidence, len(pointed_at)),
        "rule": RULE,
        "training_overlap": sets.overlap,
        "notes": [*sets.notes, *_notes(config, sets, spaces)],
        "override_privacy_gate": config.override_privacy_gate,
        "synthetic": [
            {**one.made_by, "count": len(one.samples), "name": one.name, **asdict(own)}
            for one, own in zip(sets.synthetic_sets, verdicts, strict=True)
        ],
        "inputs": _inputs(sets),
        "provenance": collect(),
    }


def _nearest(findings: SpaceFindings) -> list[dict[str, Any]]:
    closest = np.argsort(findings.distance_N, kind="stable")[:NUM_LISTED].tolist()
    return [
        {"synthetic": i, "training": int(findings.nearest_N[i]), "distance": float(findings.distance_N[i])}
        for i in closest
    ]


def _resolution(evidence: Evidence, pointed_at: int) -> dict[str, Any]:
    """What these numbers of patches and people can and cannot say."""
    return {
        "patients_pointed_at": pointed_at,
        "patients_at_most": copies.at_most(pointed_at, evidence.training_people),
        "smallest_false_positive_rate": {
            "sample": 1 / evidence.held_out,
            "patient": 1 / evidence.held_out_people,
        },
    }


def _inputs(sets: AuditSets) -> dict[str, Any]:
    kind = "volumes" if sets.kind.plural == "volumes" else "shards"
    return {
        f"synthetic {kind}": [one.content for one in sets.synthetic_sets],
        "reference shards": content_hash(sets.held_out_set.folder),
        "training shards": content_hash(sets.training_set.folder),
        "training patients": patients_hash(sets.training_set),
    }


def _notes(config: Audit, sets: AuditSets, spaces: dict[str, SpaceFindings]) -> list[str]:
    is_other = config.run is not None and sets.runs != [RunDir(config.run).name]
    return [f"the network is of {config.run}, the {sets.kind.plural} of {', '.join(sets.runs)}"] * is_other + [
        f"{space}: one held-out patient is nearer to the training {sets.kind.plural} than chance explains: `fail` may "
        "be a false alarm; look at the nearest pairs"
        for space, findings in spaces.items()
        if findings.copies.is_one_odd
    ]


def _attack_network(config: Audit, sets: AuditSets) -> dict[str, Any] | None:
    """The attack by the run's critic, or by a flow itself; None without a run.

    By default of the checkpoint and the weights that made its samples; weights_sha256 is of the generator.
    """
    if config.run is None:
        return None
    name, device = RunDir(config.run).name, choose_device(config.runtime.device, 0)
    made_by = next((one.made_by for one in sets.synthetic_sets if one.made_by.get("run") == name), {})
    checkpoint = config.checkpoint or made_by.get("checkpoint")
    network = AttackedNetwork(
        config.run, sets.training_set, device, checkpoint=checkpoint, weights=made_by.get("weights")
    )
    sides = sets.training_patches, sets.held_out_patches
    members, others = (
        network.scores(side[0].shards, [patch.index for patch in side], seed=config.seed) for side in sides
    )
    people = [patch.patient for side in sides for patch in side]
    is_member = np.arange(len(people)) < len(members)
    found = attack(np.concatenate([members, others]), is_member, people, seed=config.seed)
    return {
        "kind": network.kind,
        "run": name,
        "checkpoint": network.checkpoint,
        "weights_sha256": network.weights_sha256,
        "sentence": if_it_left(network.kind, found),
        **asdict(found),
    }


def _check_gate(config: Audit, result: Result) -> None:
    """Raises PrivacyError unless the audit passed, is only recorded, or is overridden."""
    text = f"{result['name']}: {result['verdict']}: {result['sentence']}"
    if result["verdict"] == PASS or config.record_only:
        log.info(text)
    elif config.override_privacy_gate is not None:
        log.info(f"{text} Overridden: {config.override_privacy_gate}")
    else:
        raise PrivacyError(
            f"{text} Do not share these {result['samples']}, or state a reason: override_privacy_gate=REASON "
            "(record_only=true writes the result without exit 7)"
        )
