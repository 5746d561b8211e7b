"""Places of patches, by hand."""

import itertools

import numpy as np
import pytest
import torch

from vesselgan.core.errors import DataError
from vesselgan.data.positions import places_of, position_stream, positions_of
from vesselgan.data.sampler import batch_indices
from vesselgan.formats.shards import Record, ShardSet

from ..conftest import edit_json, write_shards

PATCH = (4, 4, 2)
CORNERS = (("a", (0, 0, 0)), ("a", (4, 0, 0)), ("b", (100, 50, 7)), ("a", (12, 0, 0)))
VOLUMES = {"a": {"shape": [16, 4, 2]}, "b": {"shape": [204, 104, 16]}}


def write_set(folder, count=4):
    """The first patches of CORNERS."""
    pair = np.ones(PATCH, np.float32), np.ones(PATCH, np.uint8)
    records = [Record(*pair, name, corner, "grid", (0.0, 900.0), 0) for name, corner in CORNERS[:count]]
    return ShardSet(write_shards(folder, records, subjects=VOLUMES))


def test_positions_are_centres_in_the_subjects_volume(tmp_path):
    positions = positions_of(write_set(tmp_path)).tolist()
    # Subject a's volume is 16 x 4 x 2: centres at 2, 6 and 14 of 16.
    assert positions == [[-0.75, 0, 0], [-0.25, 0, 0], [0, 0, 0], [0.75, 0, 0]]


def test_a_place_depends_on_no_other_patch(tmp_path):
    whole, fewer = positions_of(write_set(tmp_path / "whole")), positions_of(write_set(tmp_path / "fewer", 2))
    assert torch.equal(whole[:2], fewer)


def test_extents_are_shares_of_the_volume(tmp_path):
    extent_N3 = places_of(write_set(tmp_path)).extent_N3
    ours, other = [4 / 16, 1, 1], [4 / 204, 4 / 104, 2 / 16]
    expected = np.array([ours, ours, other, ours])
    assert extent_N3.numpy() == pytest.approx(expected, rel=1e-6)  # float32


def test_unknown_volumes_are_refused_by_name(tmp_path):
    folder = write_set(tmp_path).folder
    edit_json(folder / "manifest.json", lambda manifest: manifest["subjects"]["a"].pop("shape"))
    with pytest.raises(DataError, match="shape"):
        positions_of(ShardSet(folder))


def test_positions_follow_the_batches():
    positions = torch.arange(10.0)[:, None].expand(10, 3)
    stream = position_stream(positions, batch_size=4, seed=3, start=1, stop=3, of_rank=slice(1, 3))
    for batch, number in itertools.zip_longest(stream, (1, 2)):
        assert batch[:, 0].tolist() == list(batch_indices(10, 4, 3, number)[1:3])
