"""Summaries of patches that are known by hand."""

from dataclasses import replace

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


REAL = Summary(num_empty=3, num_patches=10, vessel_fraction=0.03, low=3.0, high=73.0, contrast=10.0, specks=0.1)


def test_what_is_near_the_training_set_gets_no_warning():
    assert REAL.differences(REAL) == []
    near = Summary(num_empty=5, num_patches=10, vessel_fraction=0.011, low=20.0, high=60.0, contrast=19.0, specks=0.35)
    assert near.differences(REAL) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        # Too much alike: as patches of networks that saw too few of the times near noise.
        ({"low": 30.0, "high": 69.0}, "patch means 30 to 69 against 3 to 73"),
        # As wide, but all too bright.
        ({"low": 103.0, "high": 173.0}, "patch means 103 to 173 against 3 to 73"),
        ({"high": 140.0}, "patch means 3 to 140 against 3 to 73"),
        ({"specks": 0.99}, "components under 4 voxels 99% against 10%"),
        ({"num_empty": 9}, "empty labels 90% against 30%"),
        ({"vessel_fraction": 0.009}, "vessel fraction 0.009 against 0.03"),
        ({"contrast": 4.0}, "contrast within patches 4 against 10"),
    ],
)
def test_what_is_far_from_it_is_named(change: dict[str, float], text: str):
    assert replace(REAL, **change).differences(REAL) == [text]
