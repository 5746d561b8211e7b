"""How like real labels those are that a threshold makes of a generator's scores.

A good threshold gives as much vessel, in as many connected components, as real labels have.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vesselgan.metrics.centreline import count_components


class LabelMeans(NamedTuple):
    """Over patches."""

    vessel_fraction: float
    num_parts: float
    """Connected components of a patch."""
    num_patches: int

    def distance(self, reference: "LabelMeans") -> float | None:
        """|ln(fraction / the reference's)| + |ln((1 + parts) / (1 + the reference's))|; None: no vessel."""
        if not self.vessel_fraction:
            return None
        ratio = (1 + self.num_parts) / (1 + reference.num_parts)
        return abs(math.log(self.vessel_fraction / reference.vessel_fraction)) + abs(math.log(ratio))


def label_means(scores: Iterable[np.ndarray], thresholds: Sequence[float]) -> list[LabelMeans]:
    """Of the labels that each threshold makes of scores [X, Y, Z], of which there is at least one."""
    totals, count = np.zeros((len(thresholds), 2)), 0
    for score_XYZ in scores:
        count += 1
        for row, threshold in enumerate(thresholds):
            label_XYZ = score_XYZ >= threshold
            totals[row] += label_XYZ.mean(), count_components(label_XYZ)
    return [LabelMeans(float(fraction), float(parts), count) for fraction, parts in totals / count]


def evenly(count: int, most: int) -> np.ndarray:
    """At most so many numbers from 0 to `count` - 1, as far apart as can be."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)
