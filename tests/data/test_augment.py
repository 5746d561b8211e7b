"""Turned patches: image and label alike, no value lost, the same turns however the batches are spread."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vesselgan.config.compose import compose
from vesselgan.data.augment import NUM_ORIENTATIONS, flip_rotate, sample_orientations
from vesselgan.data.patches import ShardDataset, stream
from vesselgan.formats.shards import ShardSet

MakeSet = Callable[..., ShardSet]


def numbered(shape: tuple[int, int, int]) -> torch.Tensor:
    """Image and label whose values are their places."""
    image = torch.arange(float(np.prod(shape))).reshape(shape)
    return torch.stack([image, image + 0.5])


def dataset(shards: ShardSet) -> ShardDataset:
    return ShardDataset(shards, scaling="volume", label_threshold=0.5, intensity="byte")


def batches(data: ShardDataset, *, start: int = 2, stop: int = 8, augment: bool = True, **options: int) -> torch.Tensor:
    return torch.stack(list(stream(data, batch_size=4, seed=7, start=start, stop=stop, augment=augment, **options)))


def test_sixteen_words_are_sixteen_different_turns():
    patch = numbered((4, 4, 2))
    turned = [flip_rotate(patch, word) for word in range(NUM_ORIENTATIONS)]
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 16
    for t in turned:
        assert torch.equal(t[1], t[0] + 0.5)  # label and image moved alike
        assert torch.equal(t.flatten().sort().values, patch.flatten().sort().values)
    assert torch.equal(turned[0], patch)


def test_a_quarter_turn_by_hand():
    # axis-aligned: x = 0, 1 down, y = 0, 1 across; word 8 + 1 brings (x, y) to (1 - y, x)
    patch = torch.tensor([[[[1.0], [2.0]], [[3.0], [4.0]]]]).repeat(2, 1, 1, 1)
    assert flip_rotate(patch, 8 + 1)[0, :, :, 0].tolist() == [[2.0, 4.0], [1.0, 3.0]]
    assert flip_rotate(flip_rotate(flip_rotate(flip_rotate(patch, 9), 9), 9), 9).tolist() == patch.tolist()
    assert flip_rotate(patch, 4)[0].tolist() == patch[0].tolist()  # one voxel along Z


def test_patches_not_square_are_mirrored_not_turned():
    patch = numbered((4, 3, 2))
    assert all(flip_rotate(patch, word).shape == patch.shape for word in range(NUM_ORIENTATIONS))
    assert torch.equal(flip_rotate(patch, 8), patch)


def test_words_depend_on_seed_and_position_alone():
    first = sample_orientations(64, 5, 3)
    assert np.array_equal(first, sample_orientations(64, 5, 3))
    assert not np.array_equal(first, sample_orientations(64, 5, 4)) and not np.array_equal(
        first, sample_orientations(64, 6, 3)
    )
    counts = np.bincount(sample_orientations(16_000, 1, 0), minlength=NUM_ORIENTATIONS)
    assert abs(counts - 1000).max() < 160  # five standard deviations of a count of 1,000
    # Philox's words are fixed for ever, so a resumed run sees the same turns with a later numpy
    assert sample_orientations(6, 990, 0).tolist() == [10, 13, 0, 4, 7, 0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_workers_do_not_change_turns(make_set, num_workers):
    data = dataset(make_set())
    whole = batches(data)
    parts = [batches(data, of_rank=half, num_workers=num_workers) for half in (slice(0, 2), slice(2, 4))]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(batches(data, start=5), whole[3:])  # resumed


def test_turning_never_touches_the_cache(make_set):
    data = dataset(make_set())
    plain = batches(data, augment=False)
    turned = batches(data)
    assert not torch.equal(plain, turned) and torch.equal(batches(data, augment=False), plain)
    for batch, other in zip(plain.flatten(0, 1), turned.flatten(0, 1), strict=True):
        assert torch.equal(batch.flatten(1).sort().values, other.flatten(1).sort().values)
    assert data.read([], []).shape == (0, 2, 4, 4, 2)
    assert compose("train_gan", []).data.augment is False
