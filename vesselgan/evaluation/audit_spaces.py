"""What an audit compares samples by, the image and its features, the vessel label or its centreline, and what it finds.

Samples are patches or volumes: N synthetic ones, T training ones, M held-out ones, K planted copies;
Q = N + M + K rows, R = T + M columns
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from vesselgan.core.console import log
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

    distance: np.ndarray
    """Rows [Q]: synthetic samples, held-out ones, planted copies. Columns [R + V]: training samples, held-out ones,
    training patients' second visits."""
    has_content_Q: np.ndarray
    """Nothing can be copied in the others."""
    n: int
    t: int
    m: int
    planted: dict[str, slice]
    """Kind -> the rows of its copies."""

    @property
    def distance_QR(self) -> np.ndarray:
        return self.distance[:, : self.t + self.m]

    @property
    def second_QV(self) -> np.ndarray:
        return self.distance[:, self.t + self.m :]

    def of(self, rows: slice) -> "SpaceDistances":
        """Of these synthetic samples alone."""
        kept = np.r_[np.arange(self.n)[rows], self.n : len(self.distance)]
        fewer = len(self.distance) - len(kept)
        planted = {kind: slice(k.start - fewer, k.stop - fewer) for kind, k in self.planted.items()}
        return SpaceDistances(self.distance[kept], self.has_content_Q[kept], self.n - fewer, self.t, self.m, planted)


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
    """Space -> all distances, with copies of training samples planted among the synthetic ones.

    In the features of `extractor`, of images, no copies are planted: the space of images finds them.
    """
    n, t, m = len(sets.synthetic), len(sets.training), len(sets.held_out)
    measured = {}
    compared = f"{n:,} synthetic with {t:,} training and {m:,} held-out {sets.kind.plural}"
    log.info(f"comparing {compared}, by {', '.join(SPACES)}; this takes minutes for thousands")
    real = sets.training + sets.held_out + sets.second_visits
    bar = tqdm(total=len(SPACES) * len(real), unit="real one", disable=None)
    for space in SPACES:
        real_RXYZ = sets.kind.arrays(space, real)
        planted = _plant(space, sets, real_RXYZ[:t], seed)
        query_QXYZ = np.concatenate([sets.kind.arrays(space, sets.synthetic), real_RXYZ[t : t + m], *planted.values()])
        rows = {kind: slice(n + m + i * NUM_PLANTED, n + m + (i + 1) * NUM_PLANTED) for i, kind in enumerate(planted)}
        has_content_Q = has_content(query_QXYZ)
        measured[space] = SpaceDistances(distances(query_QXYZ, real_RXYZ, bar.update), has_content_Q, n, t, m, rows)
        if space == "image" and extractor is not None:
            mirrorings = sets.kind.mirrorings
            apart = feature_distances(query_QXYZ[: n + m], real_RXYZ, extractor, mirrorings=mirrorings, device=device)
            measured[FEATURES] = SpaceDistances(apart, has_content_Q[: n + m], n, t, m, {})
    bar.close()
    return measured


def _plant(space: str, sets: AuditSets, training_TXYZ: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Kind -> its copies [K, X, Y, Z]; empty if no training sample has content."""
    sources, planted = np.flatnonzero(has_content(training_TXYZ)), {}
    for number, kind in enumerate(SPACES[space] if len(sources) else ()):
        rng = np.random.default_rng((seed, number))
        chosen = rng.choice(sources, NUM_PLANTED).tolist()
        copies = [sets.kind.planted(kind, space, sets.training[i], training_TXYZ[i], rng) for i in chosen]
        planted[kind] = np.stack(copies)
    return planted


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
