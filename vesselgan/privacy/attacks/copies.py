"""Whether more of n generated patches lie near the training patches than chance explains: an exact test, its power.

The threshold is the smallest distance that any of m held-out real patches has to its nearest training patch. Were the
generated patches like held-out ones, every order of the n + m distances would be as likely as any other. Then a
generated patch lies below the threshold with chance 1 / (m + 1), and k or more of them do with chance

    C(n, k) / C(n + m, k)

which is Rosenbaum's exact test (1954). The n patches share one threshold, so their count is beta-binomial: binomial
chances of 1 / (m + 1) each would call a blameless generator a copier in a quarter of all audits with n = 1,600 and
m = 100, not in one of twenty.

Two assumptions. Held-out patches that overlap are less than m independent ones, so false alarms are more frequent than
SIGNIFICANCE; `odd_one_out` looks for that. And patches that are smoother than real ones lie nearer to everything,
copied or not. Both err to the closed side. What is missed is known: `power` counts on copies alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, binomtest

from vesselgan.core.errors import DataError
from vesselgan.metrics.masks import as_finite
from vesselgan.metrics.statistics import MIN_PATIENTS

OPEN, CLOSED, UNDECIDED = "open", "closed", "inconclusive"
SIGNIFICANCE = 0.05
LEAST_POWER = 0.95
"""Below it the gate does not open: copies would be missed more often than in one of twenty audits."""
SHARE = 0.01
"""Of copies among the generated patches, that must not be missed."""
VERBATIM = 0.02
"""Distance below which a patch is a copy whatever the test says: less than the noise of any scan lies between."""


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on."""

    verdict: str
    """OPEN, CLOSED (copies were found) or UNDECIDED (copies might be there and not be found)."""
    reason: str
    threshold: float
    most_noise: float | None
    """Copies with added noise of up to so many of their standard deviations lie below the threshold; None: any."""
    below: int
    """Generated patches nearer to a training patch than the threshold."""
    verbatim: int
    chance: float
    """Of so many or more below, without copying."""
    least_count: int | None
    """From so many below on, copies are said to be found; None: even all of them would be chance."""
    share_at_most: float
    """Of copies among all that the generator makes, with 95 % confidence (Clopper-Pearson, one-sided)."""
    power: float
    """Chance at least to find copies when SHARE of the patches are."""
    held_out_needed: int | None
    """Held-out patches that this number of generated ones needs; None: no number is enough."""
    generated_needed: int
    """Generated patches below which no number of held-out ones is enough."""
    is_one_odd: bool
    """See `odd_one_out`."""


def judge(distance_N: np.ndarray, held_out_M: np.ndarray, patients: Sequence[str]) -> Judgement:
    """The verdict on generated patches from the distances of both kinds to their nearest training patches.

    patients: whose each held-out patch is. DataError without a patch on either side, and for a distance below 0.
    """
    distance_N, held_out_M = _checked(distance_N, held_out_M, patients)
    n, m = len(distance_N), len(held_out_M)
    threshold = float(held_out_M.min())
    below, verbatim = int((distance_N < threshold).sum()), int((distance_N < VERBATIM).sum())
    chances = chances_of(n, m)
    count = least_count(n, m)
    chance, power = (1.0 if below == 0 else float(chances[below - 1])), power_of(n, count)
    needed = held_out_needed(n)
    num_patients = len(set(patients))
    nearer = f"{below} of {n} synthetic patches lie nearer to a training patch than all {m} of other people"
    if verbatim:
        verdict = CLOSED
        reason = f"{verbatim} of {n} synthetic patches are training patches but for noise below {VERBATIM:.0%}"
    elif threshold < VERBATIM:
        verdict = UNDECIDED
        reason = f"a held-out patch is a training patch too (distance {threshold:.4f}); is one person in both splits?"
    elif chance <= SIGNIFICANCE:
        verdict, reason = CLOSED, f"{nearer}; chance does that with probability {chance:.2g}"
    elif num_patients < MIN_PATIENTS:
        verdict = UNDECIDED
        reason = f"{num_patients} held-out people, at least {MIN_PATIENTS} are needed to stand for others"
    elif power < LEAST_POWER:
        verdict, reason = UNDECIDED, _too_few(n, m, num_patients, power, needed)
    else:
        verdict = OPEN
        reason = f"{nearer}, as chance has it; copies of {SHARE:.0%} would be found with probability {power:.3f}"
    correlation = 1 - threshold**2 / 2
    return Judgement(
        verdict=verdict,
        reason=reason,
        threshold=threshold,
        most_noise=math.sqrt(1 / correlation**2 - 1) if correlation > 0 else None,
        below=below,
        verbatim=verbatim,
        chance=chance,
        least_count=count,
        share_at_most=binomtest(max(below, verbatim), n, alternative="less").proportion_ci(0.95, "exact").high,
        power=power,
        held_out_needed=needed,
        generated_needed=generated_needed(),
        is_one_odd=odd_one_out(held_out_M, patients),
    )


def _checked(distance_N: np.ndarray, held_out_M: np.ndarray, patients: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    distance_N = as_finite(distance_N, "distances", ndim=1)
    held_out_M = as_finite(held_out_M, "held-out distances", ndim=1)
    n, m = len(distance_N), len(held_out_M)
    if not n or not m or len(patients) != m or min(distance_N.min(), held_out_M.min()) < 0:
        raise DataError(
            f"{n} synthetic patches, {m} held-out ones of {len(patients)} patients: expected at least one of each, a "
            "patient for each held-out one, and distances of 0 or more"
        )
    return distance_N, held_out_M


def _too_few(n: int, m: int, num_patients: int, power: float, needed: int | None) -> str:
    found = f"copies of {SHARE:.0%} would be found with probability {power:.2f} only, wanted is {LEAST_POWER}"
    if needed is None:
        return f"{found}: at least {generated_needed()} synthetic patches are needed for that, there are {n}"
    people = math.ceil(needed / m * num_patients)
    return (
        f"{found}: beside {n} synthetic patches that takes {needed} held-out ones, there are {m} of {num_patients} "
        f"people (with as many of each, {people} people)"
    )


def chances_of(n: int, m: int) -> np.ndarray:
    """[n]: the chance that k or more of n patches lie below the smallest of m others like them, for k = 1 .. n."""
    if n < 1 or m < 1:
        raise DataError(f"n={n}, m={m}: an audit needs patches on both sides")
    taken = np.arange(n)
    return np.cumprod((n - taken) / (n + m - taken))


def least_count(n: int, m: int) -> int | None:
    """The smallest number below the threshold that chance does not explain; None: there is none."""
    is_rare = chances_of(n, m) <= SIGNIFICANCE
    return int(is_rare.argmax()) + 1 if is_rare.any() else None


def power_of(n: int, count: int | None) -> float:
    """The chance that at least `count` of n patches are copies when each is with chance SHARE."""
    return 0.0 if count is None else float(binom.sf(count - 1, n, SHARE))


def generated_needed() -> int:
    """The number of patches of which at least one is a copy with probability LEAST_POWER."""
    return math.ceil(math.log(1 - LEAST_POWER) / math.log(1 - SHARE))


def held_out_needed(n: int) -> int | None:
    """The smallest number of held-out patches at which n generated ones give LEAST_POWER; None: no number does."""
    counts = np.arange(1, n + 1)
    enough = counts[binom.sf(counts - 1, n, SHARE) >= LEAST_POWER]
    if not len(enough):
        return None
    count, low, high = int(enough[-1]), 0, 1
    while chances_of(n, high)[count - 1] > SIGNIFICANCE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chances_of(n, middle)[count - 1] <= SIGNIFICANCE else (middle, high)
    return high


def odd_one_out(held_out_M: np.ndarray, patients: Sequence[str]) -> bool:
    """Whether the same test would call one held-out person's patches copies, judged by the others' (Bonferroni over
    people): then people differ more than the test allows for, and it may close the gate for nothing.
    """
    owner_M = np.array(patients, object)
    is_hers_M = owner_M == owner_M[int(held_out_M.argmin())]
    if is_hers_M.all():
        return False
    below = int((held_out_M[is_hers_M] < held_out_M[~is_hers_M].min()).sum())
    chances = chances_of(int(is_hers_M.sum()), int((~is_hers_M).sum()))
    return below > 0 and bool(chances[below - 1] * len(set(patients)) <= SIGNIFICANCE)
