"""The audit of what is to leave: can training patches, or training patients, be recognised in synthetic patches?

Every synthetic patch is compared with all training patches and with held-out patches of other people, by image, vessel
label and centreline: tests for copies, attacks on membership, each with its control, and copies planted to measure what
this audit of this very set would find. The verdict is about copies and membership alone; a guarantee is differential
privacy's.
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from vesselgan.config.schema import Audit
from vesselgan.core.console import log
from vesselgan.core.errors import PrivacyError
from vesselgan.evaluation.audit_sets import AuditSets, read_sets
from vesselgan.evaluation.audit_spaces import SpaceFindings, find, measure
from vesselgan.evaluation.audit_tables import tables
from vesselgan.evaluation.network_scores import AttackedNetwork
from vesselgan.formats.results import Result, write_result
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import content_hash
from vesselgan.privacy.attacks import copies, neighbours, verdict
from vesselgan.privacy.attacks.membership import attack
from vesselgan.privacy.attacks.planted import SPACES, found_of
from vesselgan.privacy.attacks.verdict import PASS, SIGNIFICANCE, Evidence, conclude, if_it_left
from vesselgan.runtime.distributed import choose_device
from vesselgan.runtime.provenance import collect

NUM_LISTED = 20  # pairs in the result's `nearest`


def audit(config: Audit) -> Result:
    """Audits `config.synthetic`, or the patches of `config.run`, writes the result to `config.out` and prints it.

    Raises PrivacyError, exit 7, after writing unless the verdict is `pass`, is only recorded or is overridden. Other
    errors: see `read_sets` and `AttackedNetwork`.
    """
    sets = read_sets(config)
    network = _attack_network(config, sets)
    spaces = {
        space: find(measure(space, sets, seed=config.seed), sets, seed=config.seed, significance=_share_of_tests())
        for space in SPACES
    }
    result = _result(config, sets, spaces) | {"network": network}
    write_result(config.out, result)
    print(tables(result))
    if network is not None:
        log.info(network["sentence"])
    for note in result["notes"]:
        log.info(f"note: {note}")
    log.info(f"wrote {config.out}")
    _check_gate(config, result)
    return result


def _share_of_tests() -> float:
    """The significance of one of the tests for copies (Bonferroni)."""
    return SIGNIFICANCE / len(SPACES)


def _evidence(sets: AuditSets, spaces: dict[str, SpaceFindings]) -> Evidence:
    tests = {space: findings.copies for space, findings in spaces.items()}
    kinds = dict.fromkeys(kind for of_space in SPACES.values() for kind in of_space)
    planted = []
    for kind in kinds:
        values = {
            space: findings.planted.get(kind, np.empty(0))
            for space, findings in spaces.items()
            if kind in SPACES[space]
        }
        planted.append(found_of(kind, values, tests))
    image = spaces["image"]
    return Evidence(
        synthetic=len(sets.synthetic),
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
    )


def _result(config: Audit, sets: AuditSets, spaces: dict[str, SpaceFindings]) -> Result:
    evidence = _evidence(sets, spaces)
    found = conclude(evidence)
    adjusted = evidence.adjusted()
    pointed_at = set.union(*(findings.pointed_at for findings in spaces.values()))
    names = ("synthetic", "training", "held_out", "training_people", "held_out_people", "verbatim")
    return {
        "job": "audit",
        "name": config.name or ", ".join(sets.runs),
        "cohort": config.data.name,
        "split": config.reference,
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
        "resolution": _resolution(evidence, len(pointed_at)),
        "rule": {
            "significance": SIGNIFICANCE,
            "share": copies.SHARE,
            "least_power": copies.LEAST_POWER,
            "verbatim": neighbours.VERBATIM,
            "min_people": verdict.MIN_PEOPLE,
        },
        "training_overlap": sets.overlap,
        "notes": [*sets.notes, *_notes(config, sets, spaces)],
        "override_privacy_gate": config.override_privacy_gate,
        "synthetic": [{"count": len(shards), **shards.manifest.extra} for shards in sets.synthetic_sets],
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
            "patch": 1 / evidence.held_out,
            "patient": 1 / evidence.held_out_people,
        },
    }


def _inputs(sets: AuditSets) -> dict[str, Any]:
    return {
        "synthetic shards": [content_hash(shards.folder) for shards in sets.synthetic_sets],
        "reference shards": content_hash(sets.held_out_set.folder),
        "training shards": content_hash(sets.training_set.folder),
    }


def _notes(config: Audit, sets: AuditSets, spaces: dict[str, SpaceFindings]) -> list[str]:
    is_other = config.run is not None and sets.runs != [RunDir(config.run).name]
    return [f"the network is of {config.run}, the patches of {', '.join(sets.runs)}"] * is_other + [
        f"{space}: one held-out patient is nearer to the training patches than chance explains: `fail` may be a false "
        "alarm; look at the nearest pairs"
        for space, findings in spaces.items()
        if findings.copies.is_one_odd
    ]


def _attack_network(config: Audit, sets: AuditSets) -> dict[str, Any] | None:
    """The attack by the run's critic, or by a flow itself; None without a run."""
    if config.run is None:
        return None
    device = choose_device(config.runtime.device, 0)
    network = AttackedNetwork(config.run, config.checkpoint, sets.training_set, device)
    members = network.scores(sets.training_set, [i for _, i in sets.training], seed=config.seed)
    others = network.scores(sets.held_out_set, [i for _, i in sets.held_out], seed=config.seed)
    people = sets.training_patients + sets.held_out_patients
    is_member = np.arange(len(people)) < len(members)
    found = attack(np.concatenate([members, others]), is_member, people, seed=config.seed)
    sentence = if_it_left(network.kind, found)
    return {"kind": network.kind, "run": RunDir(config.run).name, "sentence": sentence, **asdict(found)}


def _check_gate(config: Audit, result: Result) -> None:
    """Raises PrivacyError unless the audit passed, is only recorded, or is overridden."""
    text = f"{result['name']}: {result['verdict']}: {result['sentence']}"
    if result["verdict"] == PASS or config.record_only:
        log.info(text)
    elif config.override_privacy_gate is not None:
        log.info(f"{text} Overridden: {config.override_privacy_gate}")
    else:
        raise PrivacyError(
            f"{text} Do not share these patches, or state a reason: override_privacy_gate=REASON (record_only=true "
            "writes the result without exit 7)"
        )
