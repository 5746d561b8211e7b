"""What an audit compares samples by, the image and its features, the vessel label or its centreline, and what it finds.

Samples are patches or volumes: N synthetic ones, T training ones, M held-out ones, K planted copies;
Q = N + M + K rows, R = T + M columns
"""

from dataclasses import dataclass

import numpy as np
import torch

from vesselgan.evaluation.audit_features import feature_distances
from vesselgan.evaluation.audit_sets import AuditSets
from vesselgan.evaluation.features import Extractor
from vesselgan.metrics.oriented_distances import distances, has_content
from vesselgan.privacy.attacks.copies import CopyTest, find_copies
from vesselgan.privacy.attacks.linkage import Linkage, link
from vesselgan.privacy.attacks.membership import Attack, attack, distance_scores
from vesselgan.privacy.attacks.neighbours import (
    VERBATIM,
    PatientSimilarity,
    left_out,
    nearest_ratio,
    patient_similarities,
)
from vesselgan.privacy.attacks.planted import NUM_PLANTED, SPACES

FEATURES = "features"


@dataclass(frozen=True)
class SpaceDistances:
    """Of all samples by one kind of array."""

    second_QV: np.ndarray
    """To training patients' second visits."""

    distance_QR: np.ndarray
    """Rows: synthetic samples, held-out ones, planted copies. Columns: training samples, held-out ones."""
    has_content_Q: np.ndarray
    """Nothing can be copied in the others."""
    n: int
    t: int
    m: int
    planted: dict[str, slice]
    """Kind -> the rows of its copies."""

    def of(self, rows: slice) -> "SpaceDistances":
        """Of these synthetic samples alone."""
        kept = np.r_[np.arange(self.n)[rows], self.n : len(self.distance_QR)]
        fewer = len(self.distance_QR) - len(kept)
        planted = {kind: slice(k.start - fewer, k.stop - fewer) for kind, k in self.planted.items()}
        return SpaceDistances(
            self.second_QV[kept],
            self.distance_QR[kept],
            self.has_content_Q[kept],
            self.n - fewer,
            self.t,
            self.m,
            planted,
        )


@dataclass(frozen=True)
class SpaceFindings:
    copies: CopyTest
    attacks: dict[str, Attack]
    planted: dict[str, np.ndarray]
    """Kind -> the copies' values [K], of `neighbours.nearest_ratio`."""
    patients: list[PatientSimilarity]
    pointed_at: set[str]
    """Training patients whom a synthetic sample below the threshold is nearest to."""
    distance_N: np.ndarray
    """To the nearest training sample."""
    nearest_N: np.ndarray
    """Its index."""
    linkage: Linkage | None
    """None without a second visit."""
    is_shared: bool
    """Whether a held-out sample is a training sample too."""


def measure(
    sets: AuditSets, extractor: Extractor | None, device: torch.device, *, seed: int
) -> dict[str, SpaceDistances]:
    """Space -> all distances; of images by the features of `extractor`, too."""
    measured = {space: _measure(space, sets, seed) for space in SPACES}
    return measured if extractor is None else measured | {FEATURES: _measure_features(sets, extractor, device)}


def _measure(space: str, sets: AuditSets, seed: int) -> SpaceDistances:
    """With copies of training samples planted among the synthetic ones."""
    kind, n, t, m = sets.kind, len(sets.synthetic), len(sets.training), len(sets.held_out)
    real_RXYZ = kind.arrays(space, sets.training + sets.held_out + sets.second_visits)
    rows = [kind.arrays(space, sets.synthetic), real_RXYZ[t : t + m]]
    planted, start = {}, n + m
    sources = np.flatnonzero(has_content(real_RXYZ[:t]))
    for number, way in enumerate(SPACES[space] if len(sources) else ()):
        rng = np.random.default_rng((seed, number))
        chosen = rng.choice(sources, NUM_PLANTED).tolist()
        rows.append(np.stack([kind.planted(way, space, sets.training[i], real_RXYZ[i], rng) for i in chosen]))
        planted[way] = slice(start, start + NUM_PLANTED)
        start += NUM_PLANTED
    query_QXYZ = np.concatenate(rows)
    distance_QR, second_QV = np.split(distances(query_QXYZ, real_RXYZ), [t + m], axis=1)
    return SpaceDistances(second_QV, distance_QR, has_content(query_QXYZ), n, t, m, planted)


def _measure_features(sets: AuditSets, extractor: Extractor, device: torch.device) -> SpaceDistances:
    """Copies are planted among the images alone."""
    kind, n, t, m = sets.kind, len(sets.synthetic), len(sets.training), len(sets.held_out)
    real_RXYZ = kind.arrays("image", sets.training + sets.held_out + sets.second_visits)
    query_QXYZ = np.concatenate([kind.arrays("image", sets.synthetic), real_RXYZ[t : t + m]])
    distance = feature_distances(query_QXYZ, real_RXYZ, extractor, mirrorings=kind.mirrorings, device=device)
    distance_QR, second_QV = np.split(distance, [t + m], axis=1)
    return SpaceDistances(second_QV, distance_QR, has_content(query_QXYZ), n, t, m, {})


def find(measured: SpaceDistances, sets: AuditSets, *, seed: int, significance: float) -> SpaceFindings:
    """significance: of the test for copies."""
    distance_QR, n, t, m = measured.distance_QR, measured.n, measured.t, measured.m
    training_patients, held_out_patients = sets.training_patients, sets.held_out_patients
    owners = [*[None] * n, *held_out_patients, *[None] * (len(distance_QR) - n - m)]
    value_Q = nearest_ratio(distance_QR[:, :t], distance_QR[:, t:], left_out(held_out_patients, owners, seed=seed))
    has_content_Q = measured.has_content_Q
    kept_M = np.flatnonzero(has_content_Q[n : n + m])
    copies = find_copies(
        value_Q[:n][has_content_Q[:n]],
        value_Q[n : n + m][kept_M],
        [held_out_patients[i] for i in kept_M],
        significance=significance,
    )
    nearest_N = distance_QR[:n, :t].argmin(1)
    is_below_N = has_content_Q[:n] & (value_Q[:n] < copies.threshold)
    to_synthetic_R = distance_QR[:n].min(0)
    return SpaceFindings(
        copies=copies,
        attacks=_attacks(measured, training_patients, held_out_patients, seed),
        planted={kind: value_Q[rows] for kind, rows in measured.planted.items()},
        patients=patient_similarities(
            to_synthetic_R[:t], training_patients, to_synthetic_R[t:], held_out_patients, seed=seed
        ),
        pointed_at={training_patients[i] for i in nearest_N[is_below_N]},
        distance_N=distance_QR[:n, :t].min(1),
        nearest_N=nearest_N,
        linkage=_linkage(measured, sets, seed),
        is_shared=bool((distance_QR[n : n + m, :t] < VERBATIM).any()),
    )


def _linkage(measured: SpaceDistances, sets: AuditSets, seed: int) -> Linkage | None:
    if not sets.second_visits:
        return None
    n, t, m = measured.n, measured.t, measured.m
    to_second_QV, to_training_QT = measured.second_QV, measured.distance_QR[:, :t]
    return link(
        to_second_QV[:n],
        to_training_QT[:n],
        to_second_QV[n : n + m],
        to_training_QT[n : n + m],
        [sample.patient for sample in sets.second_visits],
        sets.training_patients,
        seed=seed,
    )


def _attacks(
    measured: SpaceDistances, training_patients: list[str], held_out_patients: list[str], seed: int
) -> dict[str, Attack]:
    people = training_patients + held_out_patients
    to_synthetic_RN = measured.distance_QR[: measured.n].T
    to_held_out_RM = measured.distance_QR[measured.n : measured.n + measured.m].T
    scores = distance_scores(to_synthetic_RN, to_held_out_RM, left_out(held_out_patients, people, seed=seed))
    is_member_R = np.arange(len(people)) < measured.t
    return {name: attack(score_R, is_member_R, people, seed=seed) for name, score_R in scores.items()}
