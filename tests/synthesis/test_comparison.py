"""Summaries of patches that are known by hand."""

import numpy as np
import pytest

from vesselgan.synthesis.comparison import Summary


class Patches:
    """As much of a ShardSet as is read."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def pair(self, i, threshold=None):
        return self.pairs[i]


def flat(value: float, *voxels: tuple[int, int, int]):
    label = np.zeros((4, 4, 4), np.uint8)
    for voxel in voxels:
        label[voxel] = 1
    return np.full((4, 4, 4), value, np.float32), label


def test_summary_of_two_patches():
    bar = [(0, 0, z) for z in range(4)]
    summary = Summary.of(Patches([flat(10), flat(30, *bar, (3, 3, 3))]))  # type: ignore[arg-type]
    assert (summary.num_empty, summary.num_patches, summary.contrast) == (1, 2, 0.0)
    assert summary.vessel_fraction == pytest.approx(5 / 128)
    assert summary.specks == 0.5  # of the bar and the lone voxel
    assert (summary.low, summary.high) == (pytest.approx(11), pytest.approx(29))


def test_differences_are_named_beyond_their_ratio():
    real = Summary(0, 10, 0.03, 5, 65, 10.0, 0.0)
    assert Summary(0, 10, 0.011, 5, 36, 19.0, 0.5).differences(real) == []
    far = Summary(0, 10, 0.009, 30, 59, 4.0, 0.0).differences(real)
    assert [text.split(" ")[0] for text in far] == ["vessel", "range", "contrast"]
