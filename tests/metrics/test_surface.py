import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from vesselgan.core.errors import DataError
from vesselgan.metrics import surface
from vesselgan.metrics.surface import balanced_average_hausdorff, distances


def brute_force(truth: np.ndarray, predicted: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Equation 4 word by word: every distance between every two voxels."""
    g, p = np.argwhere(truth) * np.array(spacing), np.argwhere(predicted) * np.array(spacing)
    distances = np.linalg.norm(g[:, None] - p[None], axis=2)
    return (distances.min(axis=1).sum() / len(g) + distances.min(axis=0).sum() / len(g)) / 2


def all_by_brute_force(truth: np.ndarray, predicted: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    """Every distance of `distances` from the definitions, from the table of all pairs of voxels."""
    g, p = np.argwhere(truth), np.argwhere(predicted)
    table = np.linalg.norm((g[:, None] - p[None]) * np.array(spacing), axis=2)
    missed, made_up = table.min(axis=1).sum(), table.min(axis=0).sum()
    rims = [mask_ & ~ndimage.binary_erosion(mask_) for mask_ in (truth, predicted)]
    table = table[rims[0][tuple(g.T)]][:, rims[1][tuple(p.T)]]
    hd95 = max(np.percentile(table.min(axis=1), 95), np.percentile(table.min(axis=0), 95))
    each = [missed / len(g), made_up / len(g)]
    return [sum(each) / 2, *each, (missed / len(g) + made_up / len(p)) / 2, hd95]


def mask(shape: tuple[int, ...], *voxels: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    for voxel in voxels:
        array[voxel] = 1
    return array


def test_voxels_three_and_four_apart_are_five():
    assert balanced_average_hausdorff(mask((8, 8, 8), (1, 1, 1)), mask((8, 8, 8), (4, 5, 1))) == 5.0


def test_both_sums_are_divided_by_the_truth():
    truth = mask((9, 1, 1), (0, 0, 0))
    predicted = mask((9, 1, 1), (0, 0, 0), (3, 0, 0), (6, 0, 0))
    # G->P: 0. P->G: 0 + 3 + 6 = 9. Over 2 |G|: 9 / 2 one way, 9 / (2 * 3) the other.
    assert balanced_average_hausdorff(truth, predicted) == 4.5
    assert balanced_average_hausdorff(predicted, truth) == 1.5


def test_inner_voxels_count_too():
    truth = np.zeros((12, 7, 7), bool)
    predicted = truth.copy()
    truth[0:3, 2:5, 2:5] = True  # two cubes of 27 voxels, 4 apart along x: gap planes at 3 (x 0..2 against 4..6)
    predicted[4:7, 2:5, 2:5] = True
    # Every voxel's nearest lies straight across: planes at distances 4, 3, 2, each of 9 voxels, both ways.
    assert balanced_average_hausdorff(truth, predicted) == pytest.approx(2 * 9 * (4 + 3 + 2) / (2 * 27), abs=1e-12)


def test_millimetres_are_measured_and_not_scaled():
    truth = mask((6, 6, 6), (0, 0, 0))
    predicted = mask((6, 6, 6), (0, 0, 2), (1, 0, 0))
    assert balanced_average_hausdorff(truth, predicted) == (1 + 2 + 1) / 2
    # With 10 mm along x the nearest voxel of the prediction is the one along z: 2 + 10 + 2 over 2.
    assert balanced_average_hausdorff(truth, predicted, (10.0, 1.0, 1.0)) == 7.0


def test_empty_masks_have_defined_distances():
    empty, one = mask((3, 4, 12)), mask((3, 4, 12), (1, 1, 1))
    assert balanced_average_hausdorff(empty, empty) == 0.0
    assert balanced_average_hausdorff(one, empty) == 13.0
    assert balanced_average_hausdorff(empty, one) == 13.0
    assert balanced_average_hausdorff(one, empty, (2.0, 2.0, 2.0)) == 26.0
    assert set(vars(distances(one, empty, (2.0, 2.0, 2.0))).values()) == {26.0}
    assert set(vars(distances(empty, empty)).values()) == {0.0}


@settings(max_examples=60, deadline=None)
@given(
    arrays(bool, (2, 5, 6, 4), elements=st.booleans()),
    st.sampled_from([(1.0, 1.0, 1.0), (0.5, 0.5, 0.7), (3.0, 0.2, 1.1)]),
    st.sampled_from([0, 1, 10**6]),
)
def test_equals_brute_force_on_any_masks(pair, spacing, voxels_per_query):
    truth, predicted = pair
    if not truth.any() or not predicted.any():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surface, "VOXELS_PER_QUERY", voxels_per_query)  # 0: always the tree; 10^6: the transform
        found = balanced_average_hausdorff(truth, predicted, spacing)
    assert found == pytest.approx(brute_force(truth, predicted, spacing), abs=1e-9)  # float64 sums of 240 terms


def random_tree(shape: tuple[int, ...], num_branches: int, seed: int) -> np.ndarray:
    """Tubes of three voxels along random walks."""
    rng = np.random.default_rng(seed)
    limits = np.array(shape) - 2
    tree = np.zeros(shape, bool)
    for _ in range(num_branches):
        point, heading = rng.uniform(1, limits), rng.normal(size=3)
        for _ in range(max(shape) // 2):
            heading = heading / np.linalg.norm(heading) + rng.normal(0, 0.3, 3)
            point = np.clip(point + heading / np.linalg.norm(heading), 1, limits)
            x, y, z = point.astype(int)
            tree[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = True
    return tree


def test_equals_brute_force_on_random_trees():
    for seed in range(0, 6, 2):
        truth, predicted = random_tree((36, 32, 20), 4, seed), random_tree((36, 32, 20), 4, seed + 1)
        for spacing in [(1.0, 1.0, 1.0), (0.5, 0.5, 0.7)]:
            assert balanced_average_hausdorff(truth, predicted, spacing) == pytest.approx(
                brute_force(truth, predicted, spacing), rel=1e-12
            )
            found = list(vars(distances(truth, predicted, spacing)).values())
            # Sums of some thousand distances in float64.
            assert found == pytest.approx(all_by_brute_force(truth, predicted, spacing), rel=1e-12)


def test_the_distances_on_a_line_by_hand():
    truth = mask((9, 1, 1), (0, 0, 0), (1, 0, 0))
    predicted = mask((9, 1, 1), (0, 0, 0), (3, 0, 0), (6, 0, 0))
    # G->P: 0 + 1. P->G: 0 + 2 + 5. |G| = 2, |P| = 3.
    found = distances(truth, predicted)
    assert (found.truth_to_predicted, found.predicted_to_truth) == (1 / 2, 7 / 2)
    assert found.bavd == (1 / 2 + 7 / 2) / 2
    assert found.avd == pytest.approx((1 / 2 + 7 / 3) / 2, abs=1e-15)
    # 95th percentiles of (0, 1) and (0, 2, 5), linear: 0.95, and 2 + 0.9 * 3.
    assert found.hd95 == pytest.approx(4.7, abs=1e-12)
    assert distances(truth, predicted, (2.0, 1.0, 1.0)).hd95 == pytest.approx(9.4, abs=1e-12)


def test_hd95_is_monais():
    from monai.metrics import compute_hausdorff_distance

    for seed in (0, 2):
        truth, predicted = random_tree((30, 26, 18), 4, seed), random_tree((30, 26, 18), 4, seed + 1)
        pair = [torch.from_numpy(side)[None, None].float() for side in (predicted, truth)]
        for spacing in [(1.0, 1.0, 1.0), (0.5, 0.6, 0.9)]:
            expected = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing, include_background=True)
            # MONAI keeps float32.
            assert distances(truth, predicted, spacing).hd95 == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(80, 96, 64), pytest.param((312, 384, 127), marks=pytest.mark.soak)])
def test_a_head_equals_the_distance_transform(shape):
    truth, other = random_tree(shape, 30, 0), random_tree(shape, 6, 1)
    predicted = np.roll(truth, 1, axis=0) | other
    start = time.process_time()  # of this process alone: the machine may be busy
    found = balanced_average_hausdorff(truth, predicted, (0.5, 0.5, 0.7))
    seconds = time.process_time() - start
    to_truth = ndimage.distance_transform_edt(~truth, sampling=(0.5, 0.5, 0.7))
    to_predicted = ndimage.distance_transform_edt(~predicted, sampling=(0.5, 0.5, 0.7))
    expected = (to_predicted[truth].sum() + to_truth[predicted].sum()) / (2 * truth.sum())
    assert found == pytest.approx(expected, rel=1e-9)
    assert distances(truth, predicted, (0.5, 0.5, 0.7)).bavd == found
    assert seconds < 1.5  # 0.15 to 0.6 measured for a whole head on one core


def test_a_wrong_spacing_is_refused():
    one = mask((3, 3, 3), (1, 1, 1))
    for spacing in [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, float("nan"), 1.0)]:
        with pytest.raises(DataError, match="spacing_mm"):
            balanced_average_hausdorff(one, one, spacing)
