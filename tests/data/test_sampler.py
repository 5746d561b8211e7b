"""A batch is a function of seed and position alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesselgan.core.errors import UsageError
from vesselgan.data.sampler import batch_indices, derangement, permutation, steps_per_epoch

sizes = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
seeds = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, seed=seeds, epoch=st.integers(0, 5))
def test_an_epoch_meets_records_at_most_once(sizes, seed, epoch):
    num_patches, batch_size = sizes
    steps = steps_per_epoch(num_patches, batch_size)
    batches = [batch_indices(num_patches, batch_size, seed, epoch * steps + step) for step in range(steps)]
    assert all(batch.dtype == np.int64 and batch.shape == (batch_size,) for batch in batches)
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen) > num_patches - batch_size
    assert set(seen.tolist()) <= set(range(num_patches))


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, seed=seeds, positions=st.lists(st.integers(0, 500), min_size=2, max_size=6))
def test_a_batch_depends_on_no_batch_before_it(sizes, seed, positions):
    forward = {p: batch_indices(*sizes, seed, p).tolist() for p in sorted(positions)}
    np.random.seed(1)  # nor on the global generator
    backward = {p: batch_indices(*sizes, seed, p).tolist() for p in sorted(positions, reverse=True)}
    assert forward == backward


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(permutation(50, seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_the_order_is_pinned_across_numpy_versions():
    # By hand from the documented parts: stable argsort of Philox(SeedSequence((990, 0))).random_raw(8).
    assert permutation(8, 990, 0).tolist() == [7, 3, 2, 0, 1, 5, 6, 4]
    assert batch_indices(8, 4, 990, 1).tolist() == [1, 5, 6, 4]


def test_every_order_of_three_is_about_as_frequent():
    counts = np.unique([permutation(3, seed, 0) @ [9, 3, 1] for seed in range(1200)], return_counts=True)[1]
    # 6 orders, 200 each expected, standard deviation 12.9: five of them either side.
    assert len(counts) == 6 and counts.min() > 135 and counts.max() < 265


@pytest.mark.parametrize(("num_patches", "batch_size"), [(3, 4), (0, 1), (5, 0), (5, -2)])
def test_a_batch_too_large_is_refused(num_patches, batch_size):
    with pytest.raises(UsageError, match=f"batch_size={batch_size}") as caught:
        batch_indices(num_patches, batch_size, 1, 0)
    assert caught.value.exit_code == 2


@settings(max_examples=60, deadline=None)
@given(num_patches=st.integers(2, 200), seed=seeds)
def test_a_derangement_moves_every_record_and_loses_none(num_patches, seed):
    partner = derangement(num_patches, seed)
    assert sorted(partner.tolist()) == list(range(num_patches))
    assert (partner != np.arange(num_patches)).all()
    assert derangement(num_patches, seed).tolist() == partner.tolist()


def test_one_patch_has_no_other_label_to_take():
    with pytest.raises(UsageError, match="at least two patches"):
        derangement(1, 0)
