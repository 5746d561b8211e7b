"""Places of patches, by hand."""

import itertools

import torch

from vesselgan.data.positions import position_stream, positions_and_extent_of, positions_of
from vesselgan.data.sampler import batch_indices


class Corners:
    """As much of a ShardSet as is read."""

    patch_shape = (4, 4, 2)
    corners = ((0, 0, 0), (4, 0, 0), (12, 0, 0), (100, 50, 7))
    subjects = ("a", "a", "a", "b")

    def __len__(self):
        return 4

    def corner(self, i):
        return self.corners[i]

    def subject(self, i):
        return self.subjects[i]


def test_positions_are_centres_in_the_subjects_box():
    positions = positions_of(Corners()).tolist()  # type: ignore[arg-type]
    # Subject a's box is 16 x 4 x 2: centres at 2, 6 and 14 of 16.
    assert positions == [[-0.75, 0, 0], [-0.25, 0, 0], [0.75, 0, 0], [0, 0, 0]]


def test_extents_are_shares_of_the_box():
    # A quarter of subject a's box for three patches, all of b's for one.
    _, extent_3 = positions_and_extent_of(Corners())  # type: ignore[arg-type]
    assert extent_3.tolist() == [0.4375, 1, 1]


def test_positions_follow_the_batches():
    positions = torch.arange(10.0)[:, None].expand(10, 3)
    stream = position_stream(positions, batch_size=4, seed=3, start=1, stop=3, of_rank=slice(1, 3))
    for batch, number in itertools.zip_longest(stream, (1, 2)):
        assert batch[:, 0].tolist() == list(batch_indices(10, 4, 3, number)[1:3])
