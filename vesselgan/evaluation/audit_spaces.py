"""What an audit compares patches by, the image, the vessel label or its centreline, and what it finds there.

N synthetic patches, T training patches, M held-out ones, K planted copies; Q = N + M + K rows, R = T + M columns
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from vesselgan.evaluation.audit_sets import AuditSets, Patch
from vesselgan.metrics.centreline import centreline
from vesselgan.metrics.oriented_distances import distances, has_content, on_grid
from vesselgan.privacy.attacks.copies import CopyTest, find_copies
from vesselgan.privacy.attacks.membership import Attack, attack, distance_scores
from vesselgan.privacy.attacks.neighbours import (
    VERBATIM,
    PatientSimilarity,
    left_out,
    nearest_ratio,
    patient_similarities,
)
from vesselgan.privacy.attacks.planted import NUM_PLANTED, SPACES, plant


@dataclass(frozen=True)
class SpaceDistances:
    """Of all patches by one kind of array."""

    distance_QR: np.ndarray
    """Rows: synthetic patches, held-out ones, planted copies. Columns: training patches, held-out ones."""
    has_content_Q: np.ndarray
    """Nothing can be copied in the other patches."""
    n: int
    t: int
    m: int
    planted: dict[str, slice]
    """Kind -> the rows of its copies."""


@dataclass(frozen=True)
class SpaceFindings:
    copies: CopyTest
    attacks: dict[str, Attack]
    planted: dict[str, np.ndarray]
    """Kind -> the copies' values [K], of `neighbours.nearest_ratio`."""
    patients: list[PatientSimilarity]
    pointed_at: set[str]
    """Training patients whom a synthetic patch below the threshold is nearest to."""
    distance_N: np.ndarray
    """To the nearest training patch."""
    nearest_N: np.ndarray
    """Its index."""
    is_shared: bool
    """Whether a held-out patch is a training patch too."""


def measure(space: str, sets: AuditSets, *, seed: int) -> SpaceDistances:
    """All distances, with copies of training patches planted among the synthetic ones."""
    real_RXYZ = on_grid(_arrays(space, sets.training + sets.held_out))
    n, t, m = len(sets.synthetic), len(sets.training), len(sets.held_out)
    rows = [on_grid(_arrays(space, sets.synthetic)), real_RXYZ[t:]]
    planted, start = {}, n + m
    sources = np.flatnonzero(has_content(real_RXYZ[:t]))
    for number, kind in enumerate(SPACES[space] if len(sources) else ()):
        rng = np.random.default_rng((seed, number))
        chosen = rng.choice(sources, NUM_PLANTED).tolist()
        copies = (plant(kind, _read(space, sets.training[i]), rng) for i in chosen)
        rows.append(on_grid(_transformed(space, copy_XYZ) for copy_XYZ in copies))
        planted[kind] = slice(start, start + NUM_PLANTED)
        start += NUM_PLANTED
    query_QXYZ = np.concatenate(rows)
    return SpaceDistances(distances(query_QXYZ, real_RXYZ), has_content(query_QXYZ), n, t, m, planted)


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
        is_shared=bool((distance_QR[n : n + m, :t] < VERBATIM).any()),
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


def _arrays(space: str, patches: Sequence[Patch]) -> Iterator[np.ndarray]:
    for patch in tqdm(patches, unit="patch", desc=space, disable=None):
        yield _transformed(space, _read(space, patch))


def _read(space: str, patch: Patch) -> np.ndarray:
    shards, i = patch
    return shards.image(i) if space == "image" else shards.label(i)


def _transformed(space: str, array_XYZ: np.ndarray) -> np.ndarray:
    """The centreline, blurred by a voxel so that near misses count, of a label; other arrays as they are."""
    if space != "centreline":
        return array_XYZ
    return ndimage.gaussian_filter(centreline(array_XYZ.astype(np.uint8)).astype(np.float32), 1.0)
