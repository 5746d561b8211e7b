import numpy as np
import pytest

from vesselgan.core.errors import DataError
from vesselgan.metrics.prd import curve_of_clusters, prd_auc, prd_curve


def modes(counts: list[int], seed: int) -> np.ndarray:
    """counts[k] samples around the k-th of twenty far places in eight dimensions."""
    places = 50 * np.random.default_rng(0).normal(size=(20, 8))
    source = np.random.default_rng(seed)
    return np.concatenate([places[k] + source.normal(size=(count, 8)) for k, count in enumerate(counts)])


def test_identical_sets_reach_one_and_disjoint_ones_nothing():
    features = np.random.default_rng(1).normal(size=(300, 16))
    precision, recall = prd_curve(features, features, num_clusters=20)
    # The curve is min(slope, 1) against min(1, 1 / slope), cut at a slope of 1e6.
    assert prd_auc(precision, recall) == pytest.approx(1 - 1e-6, abs=1e-9)
    assert (len(precision), len(recall)) == (1001, 1001)
    precision, recall = prd_curve(features, features + 1000, num_clusters=20)
    assert prd_auc(precision, recall) == 0.0 == precision.max() == recall.max()


def test_dropped_modes_cost_recall():
    real, generated = modes([30] * 20, 2), modes([40] * 15, 3)
    precision, recall = prd_curve(real, generated, num_clusters=20)
    assert precision.max() == 1.0
    assert recall.max() == pytest.approx(0.75, abs=1e-9)
    # The area is 0.75; trapezoids over 1,001 angles cut the corner at slope 4/3.
    assert prd_auc(precision, recall) == pytest.approx(0.75, abs=0.01)


def test_invented_modes_cost_precision():
    real, generated = modes([40] * 15, 4), modes([30] * 20, 5)
    precision, recall = prd_curve(real, generated, num_clusters=20)
    assert precision.max() == pytest.approx(0.75, abs=1e-9)
    assert recall.max() == 1.0
    other_recall, other_precision = prd_curve(generated, real, num_clusters=20)
    # Exchanged, the curve is run through from its other end.
    assert np.allclose(other_precision[::-1], precision, atol=1e-12)
    assert np.allclose(other_recall[::-1], recall, atol=1e-12)


def test_the_curve_of_two_clusters_by_hand():
    # Real 3 : 1, generated 1 : 1. Slope 1: min(.75, .5) + min(.25, .5) = .75 of both. Steep: min goes to generated.
    precision, recall = curve_of_clusters(
        np.array([[0, 0, 0, 1]]), np.array([[0, 0, 1, 1]]), num_clusters=2, num_angles=3
    )
    assert precision == pytest.approx([1e-6, 0.75, 1.0], abs=1e-9)
    assert recall == pytest.approx([1.0, 0.75, 1e-6], abs=1e-9)
    # Trapezoids by hand: (1 - .75) * .375 + (.75 - 0) * .875
    assert prd_auc(precision, recall) == pytest.approx(0.25 * 0.375 + 0.75 * 0.875, abs=1e-5)


def test_equal_seeds_give_equal_bytes():
    source = np.random.default_rng(6)
    real, generated = source.normal(size=(200, 6)), source.normal(0.5, 1, size=(200, 6))

    def curve(seed: int) -> bytes:
        return np.concatenate(prd_curve(real, generated, num_clusters=5, num_runs=2, seed=seed)).tobytes()

    assert curve(3) == curve(3) != curve(4)


def test_a_curve_out_of_order_is_refused():
    precision, recall = np.array([0.0, 1, 1]), np.array([1.0, 1, 0])
    assert prd_auc(precision, recall) == prd_auc(precision[::-1], recall[::-1]) == 1.0
    for other in (np.array([1.0, 0, 1]), recall[:2]):
        with pytest.raises(DataError):
            prd_auc(precision, other)


def test_unlike_sets_and_few_samples_are_refused():
    features = np.random.default_rng(7).normal(size=(30, 4))
    for real, generated, num_clusters in ((30, 29, 5), (3, 3, 7), (1, 1, 2)):
        with pytest.raises(DataError):
            prd_curve(features[:real], features[:generated], num_clusters=num_clusters)
