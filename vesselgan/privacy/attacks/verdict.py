"""The verdict of an audit, `pass`, `fail` or `cannot conclude`, and the sentence that it rests on.

The tests for copies share a significance, and so do the attacks on membership (Holm 1979): of audits of blameless
generators at most one in twenty fails by each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vesselgan.metrics.statistics import holm
from vesselgan.privacy.attacks.copies import LEAST_POWER, SHARE, CopyTest, generated_needed, held_out_needed
from vesselgan.privacy.attacks.membership import Attack
from vesselgan.privacy.attacks.neighbours import VERBATIM
from vesselgan.privacy.attacks.planted import Planted, least_power

PASS, FAIL, CANNOT_CONCLUDE = "pass", "fail", "cannot conclude"
SIGNIFICANCE = 0.05
MIN_PEOPLE = 10
"""On either side. Of ten people without a hit up to 26 % of all may have one (95 %); of five, 45 %."""


@dataclass(frozen=True)
class Evidence:
    """What an audit measured."""

    synthetic: int
    """Patches."""
    training: int
    held_out: int
    training_people: int
    held_out_people: int
    verbatim: int
    """Synthetic patches at a distance below VERBATIM from a training patch."""
    is_shared: bool
    """Whether a held-out patch is a training patch too."""
    copies: Mapping[str, CopyTest]
    """Space, such as `image` -> its test."""
    attacks: Mapping[tuple[str, str], Attack]
    """(space, name) -> the attack."""
    planted: Sequence[Planted]

    def adjusted(self) -> dict[tuple[str, str], float]:
        """The attacks' p, for their number."""
        values = holm([attack.p for attack in self.attacks.values()])
        return {key: float(p) for key, p in zip(self.attacks, values, strict=True) if p is not None}


@dataclass(frozen=True)
class Verdict:
    verdict: str
    reasons: list[str]
    """For `fail` and `cannot conclude`."""
    sentence: str
    """What was found, what was tried, on how many, and what would have been found."""


def conclude(evidence: Evidence) -> Verdict:
    if evidence.verbatim:
        share = f"{evidence.verbatim} of {evidence.synthetic} synthetic patches"
        verdict, reasons = FAIL, [f"{share} are training patches but for noise below {VERBATIM:.0%}"]
    elif evidence.is_shared:
        verdict, reasons = CANNOT_CONCLUDE, ["a held-out patch is a training patch too; is one person in both splits?"]
    elif reasons := [*_copies(evidence), *_members(evidence)]:
        verdict = FAIL
    else:
        reasons = [*_people(evidence), *_power(evidence)]
        verdict = CANNOT_CONCLUDE if reasons else PASS
    return Verdict(verdict, reasons, f"{'; '.join(reasons) or 'nothing was found'}: {_tried(evidence)}")


def if_it_left(network: str, found: Attack) -> str:
    """What is known of a run's network that is attacked itself: `critic` or `flow`."""
    auc, interval = found.patch.auc.value, found.patch.auc.interval
    limits = "" if interval is None else f", 95 % {interval[0]:.2f} to {interval[1]:.2f}"
    claim = f"training patches from held-out ones (AUC {auc:.2f}{limits}; p {found.p:.2g})"
    if found.p <= SIGNIFICANCE:
        return f"the {network} tells {claim}: it must not leave."
    return f"the {network} was not seen to tell {claim}; this attack alone was tried."


def _copies(evidence: Evidence) -> list[str]:
    return [
        f"{test.below} of {test.synthetic} synthetic patches are nearer to a training {space} than all {test.held_out} "
        f"held-out ones (chance {test.chance:.2g})"
        for space, test in evidence.copies.items()
        if test.finds
    ]


def _members(evidence: Evidence) -> list[str]:
    """The strongest of the attacks that tell members."""
    adjusted = evidence.adjusted()
    found = [key for key, p in adjusted.items() if p <= SIGNIFICANCE]
    if not found:
        return []
    space, name = max(found, key=lambda key: evidence.attacks[key].patch.auc.value)
    auc = evidence.attacks[space, name].patch.auc.value
    p = adjusted[space, name]
    return [f"{name} of the {space} tells training patches from held-out ones (AUC {auc:.2f}, p {p:.2g})"]


def _people(evidence: Evidence) -> list[str]:
    people = {"training": evidence.training_people, "held-out": evidence.held_out_people}
    few = [f"{number} {side}" for side, number in people.items() if number < MIN_PEOPLE]
    return [f"{' and '.join(few)} patients, {MIN_PEOPLE} of each are needed to stand for others"] if few else []


def _power(evidence: Evidence) -> list[str]:
    weak = least_power(evidence.planted)
    if weak.power[f"{SHARE:g}"] >= LEAST_POWER:
        return []
    test, kind = evidence.copies[weak.space], weak.kind.replace("_", " ")
    chance = f"copies of {SHARE:.0%} ({kind}) would be found with probability {weak.power[f'{SHARE:g}']:.2f} only"
    if weak.share_found < 0.5:
        return [f"{chance}: of {weak.planted} planted ones {weak.found} lie nearer than every held-out patch"]
    if (
        not test.synthetic
        or (needed := held_out_needed(test.synthetic, SHARE * weak.share_found, test.significance)) is None
    ):
        return [f"{chance}: that takes at least {generated_needed(SHARE * weak.share_found)} synthetic patches"]
    people = math.ceil(needed / max(1, test.held_out) * evidence.held_out_people)
    return [f"{chance}: that takes {needed} held-out patches ({people} patients with as many), or more synthetic ones"]


def _tried(evidence: Evidence) -> str:
    weak = least_power(evidence.planted)
    one, tenth = (f"{weak.power[key]:.2f}" for key in weak.power)
    return (
        f"{len(evidence.copies)} tests for copies and {len(evidence.attacks)} attacks on membership compared "
        f"{evidence.synthetic} synthetic patches with {evidence.training} of {evidence.training_people} training "
        f"patients and {evidence.held_out} of {evidence.held_out_people} held-out ones; copies of {SHARE:.0%} would be "
        f"found with probability {one} or more, of {SHARE / 10:.1%} with {tenth}."
    )
