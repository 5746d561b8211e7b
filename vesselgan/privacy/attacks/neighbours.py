"""Whom a patch lies near: the nearest training patch against the nearest held-out one, and each patient's largest
similarity.

N synthetic patches, T training patches, M held-out ones; Q any patches
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vesselgan.metrics.masks import as_finite
from vesselgan.metrics.oriented_distances import UNRELATED

VERBATIM = 0.02
"""Distance below which a patch is a copy whatever a test says: less than the noise of any scan lies between."""


def left_out(patients_M: Sequence[str], owners_Q: Sequence[str | None], *, seed: int) -> np.ndarray:
    """bool [Q, M]: the held-out patches that do not count for a patch. Of a held-out patient's own patch those are the
    patient's; of any other (None, or another patient's) those of one held-out patient drawn from `seed`, so that both
    kinds of patches are compared with the same number of people.
    """
    patient_M = np.array(patients_M, object)
    people = sorted(set(patients_M))
    drawn_Q = np.random.default_rng(seed).choice(people, len(owners_Q))
    excluded = [owner if owner in people else drawn for owner, drawn in zip(owners_Q, drawn_Q.tolist(), strict=True)]
    return np.array(excluded, object)[:, None] == patient_M


def nearest_ratio(to_training_QT: np.ndarray, to_held_out_QM: np.ndarray, left_out_QM: np.ndarray) -> np.ndarray:
    """[Q]: distance to the nearest training patch by that to the nearest held-out one.

    A patch that is smoother than real ones lies nearer to both kinds. VERBATIM is added to both distances.
    """
    to_training_QT = as_finite(to_training_QT, "distances", ndim=2)
    return (to_training_QT.min(1) + VERBATIM) / (kth_smallest(to_held_out_QM, left_out_QM, 1) + VERBATIM)


def kth_smallest(distance_QR: np.ndarray, left_out_QR: np.ndarray | None, k: int) -> np.ndarray:
    """[Q]: the k-th smallest distance, or the largest where there are fewer; UNRELATED where none is left."""
    distance_QR = as_finite(distance_QR, "distances", ndim=2)
    distance_QR = distance_QR if left_out_QR is None else np.where(left_out_QR, UNRELATED, distance_QR)
    k = min(k, distance_QR.shape[1])
    kth_Q: np.ndarray = np.partition(distance_QR, k - 1, axis=1)[:, k - 1]
    return kth_Q


@dataclass(frozen=True)
class PatientSimilarity:
    """How like one training patient the most similar synthetic patch is."""

    patient: str
    patches: int
    largest_similarity: float
    """Correlation of the patient's patches with the synthetic ones, 1 for a copy."""
    rank: int
    """Among the held-out patients' largest similarities; 1: above all of them."""
    of: int
    """Held-out patients and this one."""


def patient_similarities(
    to_synthetic_T: np.ndarray,
    patients_T: Sequence[str],
    to_synthetic_M: np.ndarray,
    patients_M: Sequence[str],
    *,
    seed: int,
) -> list[PatientSimilarity]:
    """Of each training patient, the most similar first, from the patches' distances to the nearest synthetic one.

    A held-out patient with more patches than the training patient is judged by as many, drawn from `seed`.
    """
    rng = np.random.default_rng(seed)
    training, held_out = _by_patient(to_synthetic_T, patients_T), _by_patient(to_synthetic_M, patients_M)
    shuffled = [rng.permutation(distances) for distances in held_out.values()]
    found = []
    for patient, distances in training.items():
        smallest, count = float(distances.min()), len(distances)
        rank = 1 + sum(bool(others[:count].min() <= smallest) for others in shuffled)
        found.append(PatientSimilarity(patient, count, 1 - smallest**2 / 2, rank, len(shuffled) + 1))
    return sorted(found, key=lambda one: -one.largest_similarity)


def _by_patient(values: np.ndarray, patients: Sequence[str]) -> dict[str, np.ndarray]:
    owners, values = np.array(patients, object), as_finite(values, "distances", ndim=1)
    return {patient: values[owners == patient] for patient in dict.fromkeys(patients)}
