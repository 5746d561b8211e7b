"""The verdict of an audit, `pass`, `fail` or `cannot conclude`, and the sentence that it rests on.

The tests for copies share a significance, and so do the attacks on membership (Holm 1979): of audits of blameless
generators at most one in twenty fails by each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vesselgan.metrics.statistics import holm
from vesselgan.privacy.attacks.copies import LEAST_POWER, SHARE, CopyTest, generated_needed, held_out_needed
from vesselgan.privacy.attacks.linkage import NOT_APPLICABLE, Linkage
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
    """Patches, or volumes."""
    training: int
    held_out: int
    training_people: int
    held_out_people: int
    verbatim: int
    """Synthetic samples at a distance below VERBATIM from a training one."""
    is_shared: bool
    """Whether a held-out sample is a training sample too."""
    copies: Mapping[str, CopyTest]
    """Space, such as `image` -> its test."""
    attacks: Mapping[tuple[str, str], Attack]
    """(space, name) -> the attack."""
    planted: Sequence[Planted]
    linkage: Mapping[str, Linkage] = field(default_factory=dict)
    """Space -> what second visits lead to; empty: there are none."""
    samples: str = "patches"
    """What they are called: `patches` or `volumes`."""

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
        share = f"{evidence.verbatim} of {evidence.synthetic} synthetic {evidence.samples}"
        verdict, reasons = FAIL, [f"{share} are training {evidence.samples} but for noise below {VERBATIM:.0%}"]
    elif evidence.is_shared:
        verdict, reasons = CANNOT_CONCLUDE, ["a held-out image is a training image too; is one person in both splits?"]
    elif reasons := [*_copies(evidence), *_members(evidence), *_links(evidence)]:
        verdict = FAIL
    else:
        reasons = [*_people(evidence), *_power(evidence)]
        verdict = CANNOT_CONCLUDE if reasons else PASS
    return Verdict(verdict, reasons, f"{'; '.join(reasons) or 'nothing was found'}: {_tried(evidence)}")


def worst(joint: Verdict, sets: Sequence[Verdict]) -> Verdict:
    """Of several sets that leave together: the worst of each set's own verdict and of the joint one.

    Where a set's own is worse, its reasons stand before the joint sentence. Each set's verdict errs as rarely as one of
    a set alone, so the more sets, the likelier a false alarm among them: that errs to the closed side.
    """
    order = (PASS, CANNOT_CONCLUDE, FAIL)
    verdict = max([joint, *sets], key=lambda one: order.index(one.verdict)).verdict
    if verdict == joint.verdict:
        return joint
    reasons = [
        f"set {i}: {reason}" for i, one in enumerate(sets, 1) if one.verdict == verdict for reason in one.reasons
    ]
    return Verdict(verdict, reasons, f"{'; '.join(reasons)}; all sets together: {joint.sentence}")


def if_it_left(network: str, found: Attack) -> str:
    """What is known of a run's network that is attacked itself: `critic` or `flow`."""
    auc, interval = found.sample.auc.value, found.sample.auc.interval
    limits = "" if interval is None else f", 95 % {interval[0]:.2f} to {interval[1]:.2f}"
    claim = f"training patches from held-out ones (AUC {auc:.2f}{limits}; p {found.p:.2g})"
    if found.p <= SIGNIFICANCE:
        return f"the {network} tells {claim}: it must not leave."
    return f"the {network} was not seen to tell {claim}; this attack alone was tried."


def _copies(evidence: Evidence) -> list[str]:
    return [
        f"{test.below} of {test.synthetic} synthetic {evidence.samples} are nearer by {space} to a training one than "
        f"all {test.held_out} held-out ones (chance {test.chance:.2g})"
        for space, test in evidence.copies.items()
        if test.finds
    ]


def _members(evidence: Evidence) -> list[str]:
    """The strongest of the attacks that tell members."""
    adjusted = evidence.adjusted()
    found = [key for key, p in adjusted.items() if p <= SIGNIFICANCE]
    if not found:
        return []
    space, name = max(found, key=lambda key: evidence.attacks[key].sample.auc.value)
    auc = evidence.attacks[space, name].sample.auc.value
    p = adjusted[space, name]
    return [f"{name} of the {space} tells training {evidence.samples} from held-out ones (AUC {auc:.2f}, p {p:.2g})"]


def _links(evidence: Evidence) -> list[str]:
    """By the Bonferroni correction over spaces."""
    return [
        f"by {space}, synthetic {evidence.samples} lead from the second visit of {one.linked} of {one.patients} "
        f"patients to the first, held-out ones of {one.control} (p {one.p:.2g})"
        for space, one in evidence.linkage.items()
        if one.p * len(evidence.linkage) <= SIGNIFICANCE
    ]


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
        return [
            f"{chance}: of {weak.planted} planted ones {weak.found} lie nearer than all held-out {evidence.samples}"
        ]
    if (
        not test.synthetic
        or (needed := held_out_needed(test.synthetic, SHARE * weak.share_found, test.significance)) is None
    ):
        return [
            f"{chance}: that takes at least {generated_needed(SHARE * weak.share_found)} synthetic {evidence.samples}"
        ]
    people = math.ceil(needed / max(1, test.held_out) * evidence.held_out_people)
    held_out = f"{needed} held-out {evidence.samples} ({people} patients with as many)"
    return [f"{chance}: that takes {held_out}, or more synthetic ones"]


def _tried(evidence: Evidence) -> str:
    weak = least_power(evidence.planted)
    one, tenth = (f"{weak.power[key]:.2f}" for key in weak.power)
    return (
        f"{len(evidence.copies)} tests for copies and {len(evidence.attacks)} attacks on membership compared "
        f"{evidence.synthetic} synthetic {evidence.samples} with {evidence.training} of {evidence.training_people} "
        f"training patients and {evidence.held_out} of {evidence.held_out_people} held-out ones; copies of {SHARE:.0%} "
        f"would be found with probability {one} or more, of {SHARE / 10:.1%} with {tenth}; "
        f"linkage of two visits: {_linkage_tried(evidence)}."
    )


def _linkage_tried(evidence: Evidence) -> str:
    patients = max((one.patients for one in evidence.linkage.values()), default=0)
    return f"tried on {patients} patients" if patients else NOT_APPLICABLE
