"""Every public metric gives the same for every layout of the same numbers in memory."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vesselgan.core.errors import DataError, UsageError
from vesselgan.metrics.centreline import centreline_dice, count_components
from vesselgan.metrics.diversity import mean_nearest_distance, mean_pairwise_distance
from vesselgan.metrics.frechet import frechet_distance
from vesselgan.metrics.jackknife import jackknife_interval
from vesselgan.metrics.label_scores import histogram
from vesselgan.metrics.label_statistics import (
    consistency,
    distance,
    label_statistics,
    skeleton_length_mm,
)
from vesselgan.metrics.nearest_neighbours import standardise
from vesselgan.metrics.overlap import dice, precision, recall
from vesselgan.metrics.prd import curve_of_clusters, prd_auc, prd_curve
from vesselgan.metrics.statistics import compare, describe, holm, mean_and_sd, signed_rank
from vesselgan.metrics.surface import balanced_average_hausdorff, distances
from vesselgan.privacy.attacks.copies import chances_of, find_copies
from vesselgan.privacy.attacks.membership import attack, distance_scores
from vesselgan.privacy.attacks.neighbours import nearest_ratio, patient_similarities

Metric = Callable[[np.ndarray, np.ndarray], object]
SPACING_MM = (0.5, 0.7, 1.1)
ON_MASKS: list[Metric] = [
    *(dice, precision, recall, centreline_dice),
    lambda truth, predicted: balanced_average_hausdorff(truth, predicted, SPACING_MM),
    lambda truth, predicted: asdict(distances(truth, predicted, SPACING_MM)),
    lambda truth, predicted: (count_components(truth), count_components(predicted)),
]
ON_NUMBERS: list[Metric] = [
    frechet_distance,
    lambda real, generated: np.stack(prd_curve(real, generated, num_clusters=3, num_angles=7, num_runs=1)).tolist(),
]


def strided(array: np.ndarray) -> np.ndarray:
    """A view with gaps between its elements."""
    wide = np.zeros([2 * size for size in array.shape], array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def reversed_in_memory(array: np.ndarray) -> np.ndarray:
    """A view with negative strides."""
    every = (slice(None, None, -1),) * array.ndim
    return array[every].copy()[every]


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS = [np.asfortranarray, strided, reversed_in_memory, read_only]
TYPES = ["?", "u1", "i8", ">i4", "f2", ">f8"]
masks = arrays(bool, (4, 3, 5)).filter(np.any)


@settings(max_examples=15, deadline=None)
@given(truth=masks, predicted=masks, layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(TYPES))
def test_scores_of_masks_ignore_layout_and_type(truth, predicted, layout, dtype):
    others = layout(truth.astype(dtype)), layout(predicted.astype(dtype))
    for metric in ON_MASKS:
        assert metric(*others) == metric(truth, predicted)
        assert metric(truth, others[1]) == metric(truth, predicted)


@pytest.mark.parametrize("dtype", ["<f8", ">f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_of_features_ignore_layout(layout, dtype):
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(40, 6)), rng.normal(0.3, 1.2, size=(40, 6))
    for metric in ON_NUMBERS:
        assert metric(layout(real.astype(dtype)), layout(generated.astype(dtype))) == metric(real, generated)
    image, label = rng.random((9, 9, 9)).astype("f4"), rng.random((9, 9, 9)) < 0.2
    other = label_statistics(layout(image.astype(dtype[0] + "f4")), layout(label), SPACING_MM)
    np.testing.assert_equal(asdict(other), asdict(label_statistics(image, label, SPACING_MM)))


@pytest.mark.parametrize("value", [np.array(1), np.array(["a"]), np.array([1j]), np.array([None]), [[1], [1, 0]]])
def test_what_is_no_array_of_numbers_is_refused(value):
    for metric in (dice, balanced_average_hausdorff, frechet_distance):
        with pytest.raises(DataError):
            metric(value, value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300, 1j], ids=str)
def test_numbers_without_a_score_are_refused(bad):
    rng = np.random.default_rng(0)
    good, spoiled = rng.normal(size=(12, 12)), rng.normal(size=(12, 12)).astype(complex if bad == 1j else float)
    spoiled[3, 3] = bad
    image = rng.random((12, 12, 12))
    spoiled_image = np.stack([spoiled] * 12)
    label = image < 0.2
    on_features: list[Metric] = [*ON_NUMBERS, lambda _, generated: mean_pairwise_distance(generated)]
    on_features.append(mean_nearest_distance)
    for metric in on_features:
        with pytest.raises(DataError):
            metric(good, spoiled)
    for call in (
        lambda: standardise(spoiled_image),
        lambda: label_statistics(spoiled_image, label, SPACING_MM),
        lambda: label_statistics(image, spoiled_image, SPACING_MM),
        lambda: label_statistics(image, label, (0.5, 0.5, -0.5)),
        lambda: count_components(spoiled_image),
        lambda: dice(label, spoiled_image),
    ):
        with pytest.raises(DataError):
            call()
    if bad != 1e300:
        with pytest.raises(DataError):
            jackknife_interval(0.5, [0.1, 0.2, 0.3, 0.4, bad])  # type: ignore[list-item]
        with pytest.raises(DataError):
            prd_auc(np.array([0, bad]), np.array([1, 0]))
        with pytest.raises(DataError):
            describe(spoiled, seed=0)


def test_a_huge_offset_is_refused_not_zero():
    # Their distance is 9 per feature; in double precision 1e20 + 3 is 1e20.
    features = 1e20 + np.random.default_rng(0).normal(size=(40, 6))
    with pytest.raises(DataError):
        frechet_distance(features, features + 3)


@pytest.mark.parametrize("settings", [{"num_clusters": 0}, {"num_clusters": 2, "num_runs": 0},
                                      {"num_clusters": 2, "num_angles": 1}])  # fmt: skip
def test_a_curve_of_nothing_is_refused(settings):
    features = np.random.default_rng(0).normal(size=(8, 2))
    with pytest.raises(UsageError):
        prd_curve(features, features, **settings)


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: holm([0.1, bad]),
        lambda bad: signed_rank(np.array([0.1, 0.2, bad])),
        lambda bad: mean_and_sd([0.1, bad]),
        lambda bad: jackknife_interval(bad, [0.1] * 5),
        lambda bad: distance(np.array([1.0, bad]), np.ones(2)),
        lambda bad: consistency(np.full((3, 3, 3), bad), np.eye(3)[None].repeat(3, 0)),
        lambda bad: skeleton_length_mm(np.ones((2, 2, 2)), (1, 1, bad)),
        lambda bad: histogram(np.array([bad])),
        lambda bad: find_copies(np.array([0.5, bad]), np.ones(2), ["a", "b"], significance=0.05),
        lambda bad: find_copies(np.ones(2), np.array([0.5, bad]), ["a", "b"], significance=0.05),
        lambda bad: attack(np.array([0.5, bad]), np.array([True, False]), ["a", "b"], seed=0),
        lambda bad: distance_scores(np.array([[bad]]), np.ones((1, 2)), np.zeros((1, 2), bool)),
        lambda bad: distance_scores(np.ones((1, 2)), np.array([[bad]]), np.zeros((1, 1), bool)),
        lambda bad: nearest_ratio(np.array([[bad]]), np.ones((1, 2)), np.zeros((1, 2), bool)),
        lambda bad: nearest_ratio(np.ones((1, 2)), np.array([[bad]]), np.zeros((1, 1), bool)),
        lambda bad: patient_similarities(np.array([bad]), ["a"], np.ones(1), ["b"], seed=0),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_statistic_takes_what_is_not_finite(call, bad):
    with pytest.raises(DataError):
        call(bad)


def test_shapes_that_do_not_fit_are_refused():
    cube, flat, curve = np.ones((3, 3, 3)), np.ones((3, 3)), np.ones((12, 3))
    for call in (
        lambda: compare(np.ones((3, 2)), np.ones((4, 2)), seed=0),
        lambda: describe(np.ones(3), seed=0),
        lambda: describe(np.ones((0, 3)), seed=0),
        lambda: holm([1.5]),
        lambda: signed_rank(flat),
        lambda: (centreline_dice(flat, flat), 1),
        lambda: (count_components(flat), 1),
        lambda: label_statistics(np.ones((4, 4, 4)), cube, SPACING_MM),
        lambda: label_statistics(flat, flat, SPACING_MM),
        lambda: distances(cube, cube, (1, 1)),
        lambda: mean_nearest_distance(curve, np.ones((12, 4))),
        lambda: curve_of_clusters(np.array([[0, 3]]), np.array([[0, 1]]), num_clusters=3),
        lambda: curve_of_clusters(np.array([[0, -1]]), np.array([[0, 1]]), num_clusters=3),
        lambda: find_copies(np.ones(2), np.ones(2), ["a"], significance=0.05),
        lambda: find_copies(-np.ones(2), np.ones(2), ["a", "b"], significance=0.05),
        lambda: chances_of(3, 0),
    ):
        with pytest.raises(DataError):
            call()
