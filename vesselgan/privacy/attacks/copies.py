"""Whether more of n generated patches lie near the training patches than chance explains: an exact test, its power.

A patch's value is its distance to the nearest training patch by that to the nearest held-out one (`neighbours`). The
threshold is the smallest value of m held-out real patches. Were the generated patches like held-out ones, every order
of the n + m values would be as likely as any other. Then a generated patch lies below the threshold with chance
1 / (m + 1), and k or more of them do with chance

    C(n, k) / C(n + m, k)

which is Rosenbaum's exact test (1954). The n patches share one threshold, so their count is beta-binomial: binomial
chances of 1 / (m + 1) each would call a blameless generator a copier in a quarter of all audits with n = 1,600 and
m = 100, not in one of twenty.

Two assumptions. Held-out patches that overlap are less than m independent ones, so false alarms are more frequent than
the significance; `odd_one_out` looks for that. And values of patches that are smoother than real ones scatter more,
copied or not. Both err to the closed side. What is missed is known: planted copies measure it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, binomtest

from vesselgan.core.errors import DataError
from vesselgan.metrics.masks import as_finite

SHARE = 0.01
"""Of copies among the generated patches, that must not be missed."""
LEAST_POWER = 0.95
"""Below it an audit does not pass: copies would be missed more often than in one of twenty audits."""


@dataclass(frozen=True)
class CopyTest:
    """Of one way to compare patches."""

    synthetic: int
    """Patches with content: nothing can be copied in the others."""
    held_out: int
    threshold: float
    """The smallest value of a held-out patch."""
    median: float
    """Of the generated patches' values."""
    median_held_out: float
    below: int
    """Generated patches below it."""
    chance: float
    """Of so many or more below, without copying."""
    significance: float
    """Copies are found where the chance is at most this."""
    least_count: int | None
    """From so many below on, copies are found; None: even all of them would be chance."""
    share_at_most: float
    """Of copies among all that the generator makes, with 95 % confidence (Clopper-Pearson, one-sided)."""
    is_one_odd: bool
    """See `odd_one_out`."""

    @property
    def finds(self) -> bool:
        return self.below > 0 and self.chance <= self.significance

    def power(self, share: float) -> float:
        """The chance that copies are found when each patch is a copy below the threshold with chance `share`."""
        return 0.0 if self.least_count is None else float(binom.sf(self.least_count - 1, self.synthetic, share))


def find_copies(
    value_N: np.ndarray, held_out_M: np.ndarray, patients_M: Sequence[str], *, significance: float
) -> CopyTest:
    """The test on the values of generated and held-out patches; of no patch on one side, a test that finds nothing.

    patients_M: whose each held-out patch is. DataError for values below 0 or not finite.
    """
    value_N, held_out_M = as_finite(value_N, "values", ndim=1), as_finite(held_out_M, "held-out values", ndim=1)
    n, m = len(value_N), len(held_out_M)
    if len(patients_M) != m or min(value_N.min(initial=0), held_out_M.min(initial=0)) < 0:
        raise DataError(f"{m} held-out patches of {len(patients_M)} patients: expected a patient each, and values >= 0")
    if not n or not m:
        return CopyTest(n, m, 0.0, 1.0, 1.0, 0, 1.0, significance, None, 1.0, False)
    threshold = float(held_out_M.min())
    below = int((value_N < threshold).sum())
    return CopyTest(
        synthetic=n,
        held_out=m,
        threshold=threshold,
        median=float(np.median(value_N)),
        median_held_out=float(np.median(held_out_M)),
        below=below,
        chance=1.0 if below == 0 else float(chances_of(n, m)[below - 1]),
        significance=significance,
        least_count=least_count(n, m, significance),
        share_at_most=at_most(below, n),
        is_one_odd=odd_one_out(held_out_M, patients_M, significance),
    )


def at_most(hits: int, number: int) -> float:
    """The share that `hits` of `number` allow, with 95 % confidence (Clopper-Pearson, one-sided)."""
    return float(binomtest(hits, number, alternative="less").proportion_ci(0.95, "exact").high)


def chances_of(n: int, m: int) -> np.ndarray:
    """[n]: the chance that k or more of n patches lie below the smallest of m others like them, for k = 1 .. n."""
    if n < 1 or m < 1:
        raise DataError(f"n={n}, m={m}: an audit needs patches on both sides")
    taken = np.arange(n)
    return np.cumprod((n - taken) / (n + m - taken))


def least_count(n: int, m: int, significance: float) -> int | None:
    """The smallest number below the threshold that chance does not explain; None: there is none."""
    is_rare = chances_of(n, m) <= significance
    return int(is_rare.argmax()) + 1 if is_rare.any() else None


def generated_needed(share: float) -> int:
    """The number of patches of which at least one is a copy with probability LEAST_POWER."""
    return math.ceil(math.log(1 - LEAST_POWER) / math.log(1 - share))


def held_out_needed(n: int, share: float, significance: float) -> int | None:
    """The smallest number of held-out patches at which n generated ones give LEAST_POWER; None: no number does."""
    counts = np.arange(1, n + 1)
    enough = counts[binom.sf(counts - 1, n, share) >= LEAST_POWER]
    if not len(enough):
        return None
    count, low, high = int(enough[-1]), 0, 1
    while chances_of(n, high)[count - 1] > significance:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chances_of(n, middle)[count - 1] <= significance else (middle, high)
    return high


def odd_one_out(held_out_M: np.ndarray, patients_M: Sequence[str], significance: float) -> bool:
    """Whether the same test would call one held-out person's patches copies, judged by the others' (Bonferroni over
    people): then people differ more than the test allows for, and it may find copies where there are none.
    """
    owner_M = np.array(patients_M, object)
    is_hers_M = owner_M == owner_M[int(held_out_M.argmin())]
    if is_hers_M.all():
        return False
    below = int((held_out_M[is_hers_M] < held_out_M[~is_hers_M].min()).sum())
    chances = chances_of(int(is_hers_M.sum()), int((~is_hers_M).sum()))
    return below > 0 and bool(chances[below - 1] * len(set(patients_M)) <= significance)
