"""Whether synthetic samples link a patient's second visit, which training never saw, to the first.

The attacker has the second visit and the training patients' first ones. From the second visit she goes to the nearest
synthetic sample, and from there to the nearest training sample: is it the same patient's? Visits of one patient are
alike, so anybody's sample near one is near the other: the control goes by held-out samples of other people instead, as
many of them.

N synthetic samples, M held-out ones, T training ones, V of second visits
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

NOT_APPLICABLE = "not applicable: no subject has two visits"


@dataclass(frozen=True)
class Linkage:
    patients: int
    """With a second visit."""
    linked: int
    """Patients whose second visit leads to their first by synthetic samples."""
    control: int
    """The same by held-out samples."""
    through: int
    """Samples of either kind."""
    p: float
    """One-sided, of the patients that one kind links and the other does not (McNemar's exact test)."""


def link(
    synthetic_NV: np.ndarray,
    synthetic_NT: np.ndarray,
    held_out_MV: np.ndarray,
    held_out_MT: np.ndarray,
    patients_V: Sequence[str],
    patients_T: Sequence[str],
    *,
    seed: int,
) -> Linkage:
    """From distances. Of the larger kind as many samples as of the other are drawn from `seed`."""
    rng, through = np.random.default_rng(seed), min(len(synthetic_NV), len(held_out_MV))
    linked = []
    for to_second, to_training in ((synthetic_NV, synthetic_NT), (held_out_MV, held_out_MT)):
        drawn = np.sort(rng.permutation(len(to_second))[:through])
        linked.append(_linked(to_second[drawn], to_training[drawn], patients_V, patients_T))
    synthetic, control = linked
    only, only_control = len(synthetic - control), len(control - synthetic)
    discordant = only + only_control
    p = float(binomtest(only, discordant, alternative="greater").pvalue) if discordant else 1.0
    return Linkage(len(set(patients_V)), len(synthetic), len(control), through, p)


def _linked(
    to_second_XV: np.ndarray, to_training_XT: np.ndarray, patients_V: Sequence[str], patients_T: Sequence[str]
) -> set[str]:
    owner_V, linked = np.array(patients_V, object), set()
    for patient in dict.fromkeys(patients_V):
        nearest = int(to_second_XV[:, owner_V == patient].min(1).argmin())
        if patients_T[int(to_training_XT[nearest].argmin())] == patient:
            linked.add(patient)
    return linked
