"""An audit's result as tables for a terminal."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from vesselgan.core.console import printable
from vesselgan.formats.results import Result


def tables(result: Result) -> str:
    """Copies, planted copies, membership with its controls, patients, each set's verdict; a blank line between."""
    count, resolution, samples = result["count"], result["resolution"], result["samples"]
    people = {side: f"{count[side]} {name} {samples} of {count[side + '_people']} patients" for side, name in SIDES}
    head = f"{result['name']}: {count['synthetic']} synthetic {samples}, {people['training']}, {people['held_out']}"
    rates = resolution["smallest_false_positive_rate"]
    pointed_at, share = resolution["patients_pointed_at"], resolution["patients_at_most"]
    limits = (
        f"{samples} below a threshold point to {pointed_at} of {count['training_people']} training patients, at most "
        f"{share:.1%} of such patients (95 %); false positive rates below {rates['sample']:.2%} of {samples} and "
        f"{rates['patient']:.1%} of patients cannot be seen"
    )
    parts = [head, _copies(result), _planted(result), _membership(result), _patients(result), _linkage(result), limits]
    if len(result["synthetic"]) > 1:
        parts.append(
            "\n".join(
                f"set {i}, {one['name']}: {one['verdict']}: {one['sentence']}"
                for i, one in enumerate(result["synthetic"], 1)
            )
        )
    return printable("\n\n".join(parts))


SIDES = (("training", "training"), ("held_out", "held-out"))


def _copies(result: Result) -> str:
    rows = {
        f"copies by {space}": {
            "nearer than all held-out": f"{found['copies']['below']} of {found['copies']['synthetic']}",
            "ratio to held-out": f"{found['copies']['median']:.2f}",
            "of held-out": f"{found['copies']['median_held_out']:.2f}",
            "chance": f"{found['copies']['chance']:.2g}",
            "share at most": f"{found['copies']['share_at_most']:.2%}",
        }
        for space, found in result["spaces"].items()
    }
    return _text(rows)


def _planted(result: Result) -> str:
    rows = {
        f"planted copies, {one['kind'].replace('_', ' ')}": {
            "found": f"{one['found']} of {one['planted']}",
            **{f"power at {float(share):.1%}": f"{power:.2f}" for share, power in one["power"].items()},
        }
        for one in result["planted"]
    }
    return _text(rows)


def _membership(result: Result) -> str:
    rows = {
        f"{name} of {space}": _attack_row(found) | {"p (Holm)": f"{found['p_holm']:.2g}"}
        for space, findings in result["spaces"].items()
        for name, found in findings["attacks"].items()
    }
    if (network := result["network"]) is not None:
        rows[f"{network['kind']} itself, if it left"] = _attack_row(network) | {"p (Holm)": f"{network['p']:.2g} alone"}
    return _text(rows)


def _attack_row(found: dict[str, Any]) -> dict[str, str]:
    auc, tpr = found["sample"]["auc"], found["sample"]["tpr"]
    return {
        "AUC": f"{auc['value']:.2f} {_interval(auc['interval'])}",
        "among members": _interval(auc["control_members"]),
        "among others": _interval(auc["control_others"]),
        "AUC of patients": f"{found['patient']['auc']['value']:.2f} {_interval(found['patient']['auc']['interval'])}",
        "TPR at 1 % FPR": "too few" if tpr is None else f"{tpr['value']:.2f} {_interval(tpr['interval'])}",
    }


def _patients(result: Result) -> str:
    rows = {
        f"most similar patient by {space}": {
            "patient": found["patients"][0]["patient"],
            "similarity": f"{found['patients'][0]['largest_similarity']:.3f}",
            "rank among held-out": f"{found['patients'][0]['rank']} of {found['patients'][0]['of']}",
        }
        for space, found in result["spaces"].items()
    }
    return _text(rows)


def _linkage(result: Result) -> str:
    found = result["linkage"]
    if isinstance(found, str):
        return f"linkage of two visits: {found}"
    rows = {
        f"second visits linked to the first by {space}": {
            "linked": f"{one['linked']} of {one['patients']}",
            "by held-out": f"{one['control']} of {one['patients']}",
            "p": f"{one['p']:.2g} alone",
        }
        for space, one in found.items()
    }
    return _text(rows)


def _interval(limits: Sequence[float] | None) -> str:
    return "-" if limits is None else f"[{limits[0]:.2f}, {limits[1]:.2f}]"


def _text(rows: dict[str, dict[str, str]]) -> str:
    return str(pd.DataFrame.from_dict(rows, orient="index").to_string())
