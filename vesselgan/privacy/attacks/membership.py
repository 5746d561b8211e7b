"""Whether scores tell members from others: AUC and TPR at 1 % FPR, of patches and of patients, with the controls.

Everything is drawn over patients: their patches are alike. p is of the permutation of patients' membership, where the
split was random; for it patients show equally many patches, since few patches scatter more than many. The control is
the same attack between two random halves of the members, and of the others, where there is nothing to find.

X patches, P patients, B draws
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from vesselgan.core.errors import DataError
from vesselgan.metrics.masks import as_finite
from vesselgan.metrics.statistics import MIN_PATIENTS
from vesselgan.privacy.attacks.neighbours import VERBATIM, kth_smallest

FALSE_POSITIVE_RATE = 0.01
MIN_OTHERS = 100
"""Below it a false positive rate of 1 % cannot be seen."""
NUM_NEIGHBOURS = 5
"""That a density is estimated from."""
NUM_PERMUTATIONS, NUM_DRAWS, NUM_DRAWS_TPR = 9999, 2000, 300
Interval = list[float]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of two sides' weights of patients [B, P] each: [B]."""


@dataclass(frozen=True)
class Estimate:
    """A number that an attack reaches, and what it reaches where there is nothing to find."""

    value: float
    interval: Interval | None
    """Bootstrap over patients, 95 %; None below five on a side."""
    control_members: Interval | None
    """95 % of the values between two random halves of the members; None where they are too few."""
    control_others: Interval | None
    """The same of the others."""


@dataclass(frozen=True)
class Level:
    """An attack on patches, or on patients by the mean of their patches' scores."""

    members: int
    others: int
    auc: Estimate
    tpr: Estimate | None
    """True positive rate at a false positive rate of 1 %; None where the others are fewer than 100."""


@dataclass(frozen=True)
class Attack:
    sample: Level
    """Of patches, or of whole volumes."""
    patient: Level
    p: float
    """One-sided, of the samples' AUC, over permutations of the patients' membership."""


def distance_scores(
    to_synthetic_XN: np.ndarray, to_reference_XM: np.ndarray, left_out_XM: np.ndarray
) -> dict[str, np.ndarray]:
    """Name -> [X], higher for members, from distances to synthetic patches and to those of other people.

    `distance`: to the nearest synthetic patch (GAN-Leaks, Chen 2020); `calibrated`: less that to the nearest patch of
    other people; `density`: log of the ratio of both densities (DOMIAS, van Breugel 2023), by the NUM_NEIGHBOURS-th
    nearest patch of each kind.
    """
    nearest_X = kth_smallest(to_synthetic_XN, None, 1)
    kth_X = kth_smallest(to_synthetic_XN, None, NUM_NEIGHBOURS)
    reference_X = kth_smallest(to_reference_XM, left_out_XM, 1)
    kth_reference_X = kth_smallest(to_reference_XM, left_out_XM, NUM_NEIGHBOURS)
    return {
        "distance": -nearest_X,
        "calibrated": reference_X - nearest_X,
        "density": np.log(kth_reference_X + VERBATIM) - np.log(kth_X + VERBATIM),
    }


def attack(score_X: np.ndarray, is_member_X: np.ndarray, patients_X: Sequence[str], *, seed: int) -> Attack:
    """What scores tell, higher for members. A patient is a member with all patches or with none.

    Raises DataError without a patch on either side and for a patient on both.
    """
    score_X = as_finite(score_X, "scores", ndim=1)
    people, owner_X = np.unique(np.array(patients_X, str), return_inverse=True)
    if len({len(score_X), len(is_member_X), len(owner_X)}) != 1 or is_member_X.all() or not is_member_X.any():
        raise DataError(f"{len(score_X)} scores of {len(owner_X)} patients: expected one each, on both sides")
    counts_P = np.bincount(owner_X)
    members_P = np.bincount(owner_X, is_member_X)
    is_member_P = members_P == counts_P
    if (members_P[~is_member_P] > 0).any():
        raise DataError("a patient is a member with some patches and none with others")
    mean_P = np.bincount(owner_X, score_X) / counts_P
    patch = Scores(score_X, owner_X, is_member_P)
    patient = Scores(mean_P, np.arange(len(people)), is_member_P)
    most = int(min(np.median(counts_P[is_member_P]), np.median(counts_P[~is_member_P])))
    shown = _at_most(most, owner_X, seed)
    return Attack(
        patch.level(seed), patient.level(seed), Scores(score_X[shown], owner_X[shown], is_member_P).p_value(seed)
    )


def _at_most(most: int, owner_X: np.ndarray, seed: int) -> np.ndarray:
    """Indices of at most so many patches of each patient, drawn from `seed`."""
    drawn_X = np.random.default_rng((seed, 4)).permutation(len(owner_X))
    drawn_X = drawn_X[np.argsort(owner_X[drawn_X], kind="stable")]
    counts_P = np.bincount(owner_X)
    place_X = np.arange(len(owner_X)) - np.repeat(np.cumsum(counts_P) - counts_P, counts_P)
    return drawn_X[place_X < max(1, most)]


class Scores:
    """Scores of patches, or one of each patient, and whose they are.

    The AUC of any patients against any others is a quotient of sums over pairs of patients, so that draws are products
    of matrices.
    """

    def __init__(self, score_X: np.ndarray, owner_X: np.ndarray, is_member_P: np.ndarray) -> None:
        self.is_member_P = is_member_P
        self.counts_P = np.bincount(owner_X, minlength=len(is_member_P)).astype(float)
        # Equal up to rounding is equal: a mean of equal numbers differs from them in the last digit.
        self.owner_X, self.rank_X = owner_X, rankdata(np.round(score_X, 9), "dense")
        self.wins_PP = np.empty((len(is_member_P), len(is_member_P)))
        for q in range(len(is_member_P)):
            others = np.sort(self.rank_X[owner_X == q])
            below_X = (np.searchsorted(others, self.rank_X, "left") + np.searchsorted(others, self.rank_X, "right")) / 2
            self.wins_PP[:, q] = np.bincount(owner_X, below_X, minlength=len(is_member_P))

    def auc(self, first_BP: np.ndarray, second_BP: np.ndarray) -> np.ndarray:
        """[B]: the chance that a score of the first patients is higher than one of the second, by their weights."""
        wins_B = ((first_BP @ self.wins_PP) * second_BP).sum(1)
        return wins_B / ((first_BP @ self.counts_P) * (second_BP @ self.counts_P))

    def p_value(self, seed: int) -> float:
        rng = np.random.default_rng((seed, 1))
        is_member_BP = rng.permuted(np.tile(self.is_member_P, (NUM_PERMUTATIONS, 1)), axis=1).astype(float)
        observed = self.auc(*self._sides())[0]
        # A draw equal to the observed split is not less because of rounding.
        as_high = int((self.auc(is_member_BP, 1 - is_member_BP) >= observed - 1e-9).sum())
        return (1 + as_high) / (1 + NUM_PERMUTATIONS)

    def level(self, seed: int) -> Level:
        members, others = (int(side_1P[0] @ self.counts_P) for side_1P in self._sides())
        tpr = self._estimate(self.tpr, NUM_DRAWS_TPR, MIN_OTHERS, seed) if others >= MIN_OTHERS else None
        return Level(members, others, self._estimate(self.auc, NUM_DRAWS, 1, seed), tpr)

    def _estimate(self, statistic: Statistic, num_draws: int, least: int, seed: int) -> Estimate:
        """least: scores that a half needs for a control."""
        intervals = [
            None if draws is None else np.percentile(statistic(*draws), [2.5, 97.5]).tolist()
            for draws in (
                self._resampled(num_draws, seed),
                self._halves(self.is_member_P, num_draws, least, seed),
                self._halves(~self.is_member_P, num_draws, least, seed),
            )
        ]
        return Estimate(float(statistic(*self._sides())[0]), *intervals)

    def tpr(self, first_BP: np.ndarray, second_BP: np.ndarray) -> np.ndarray:
        """[B]: the share of the first patients' scores above all but 1 % of the second's."""
        rates = []
        for first_P, second_P in zip(first_BP.astype(int), second_BP.astype(int), strict=True):
            member, other = (np.repeat(self.rank_X, side_P[self.owner_X]) for side_P in (first_P, second_P))
            threshold = np.sort(other)[-1 - int(FALSE_POSITIVE_RATE * len(other))]
            rates.append((member > threshold).mean())
        return np.array(rates)

    def _sides(self) -> tuple[np.ndarray, np.ndarray]:
        return self.is_member_P[None].astype(float), (~self.is_member_P)[None].astype(float)

    def _resampled(self, num_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
        """How often each patient is drawn on either side; None where one has too few."""
        rng = np.random.default_rng((seed, 2))
        sides = []
        for is_here_P in (self.is_member_P, ~self.is_member_P):
            if (number := int(is_here_P.sum())) < MIN_PATIENTS:
                return None
            weight_BP = np.zeros((num_draws, len(is_here_P)))
            weight_BP[:, is_here_P] = rng.multinomial(number, np.full(number, 1 / number), num_draws)
            sides.append(weight_BP)
        return sides[0], sides[1]

    def _halves(
        self, is_here_P: np.ndarray, num_draws: int, least: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Random halves of some patients; None where there are too few."""
        number = int(is_here_P.sum())
        if number < 4 or self.counts_P[is_here_P].sum() < 2 * least:
            return None
        is_first = np.arange(number) < number // 2
        first_BP, second_BP = np.zeros((2, num_draws, len(is_here_P)))
        drawn = np.random.default_rng((seed, 3)).permuted(np.tile(is_first, (num_draws, 1)), axis=1)
        first_BP[:, is_here_P], second_BP[:, is_here_P] = drawn, ~drawn
        return first_BP, second_BP
