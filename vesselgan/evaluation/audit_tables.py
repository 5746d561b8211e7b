"""An audit's result as tables for a terminal."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from vesselgan.core.console import printable
from vesselgan.formats.results import Result


def tables(result: Result) -> str:
    """Copies, planted copies, membership with its controls, patients; a blank line between."""
    count, resolution = result["count"], result["resolution"]
    people = {side: f"{count[side]} {name} patches of {count[side + '_people']} patients" for side, name in SIDES}
    head = f"{result['name']}: {count['synthetic']} synthetic patches, {people['training']}, {people['held_out']}"
    rates = resolution["smallest_false_positive_rate"]
    pointed_at, share = resolution["patients_pointed_at"], resolution["patients_at_most"]
    limits = (
        f"patches below a threshold point to {pointed_at} of {count['training_people']} training patients, at most "
        f"{share:.1%} of such patients (95 %); false positive rates below {rates['patch']:.2%} of patches and "
        f"{rates['patient']:.1%} of patients cannot be seen"
    )
    parts = [head, _copies(result), _planted(result), _membership(result), _patients(result), limits]
    return printable("\n\n".join(parts))


SIDES = (("training", "training"), ("held_out", "held-out"))


def _copies(result: Result) -> str:
    rows = {
        f"copies by {space}": {
            "nearer than all held-out": f"{found['copies']['below']} of {found['copies']['synthetic']}",
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
    auc, tpr = found["patch"]["auc"], found["patch"]["tpr"]
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


def _interval(limits: Sequence[float] | None) -> str:
    return "-" if limits is None else f"[{limits[0]:.2f}, {limits[1]:.2f}]"


def _text(rows: dict[str, dict[str, str]]) -> str:
    return str(pd.DataFrame.from_dict(rows, orient="index").to_string())
