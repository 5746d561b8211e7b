import numpy as np
import pytest
from scipy import stats

from vesselgan.metrics.jackknife import jackknife_interval, leave_one_out, paired_groups
from vesselgan.metrics.statistics import MIN_PATIENTS


def test_a_means_interval_is_students():
    values = np.array([3.0, 5, 4, 8, 10])
    left = [float(np.delete(values, i).mean()) for i in range(5)]
    expected = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    assert jackknife_interval(float(values.mean()), left) == pytest.approx(expected, rel=1e-12)


def test_it_stays_in_the_scores_range():
    assert jackknife_interval(0.5, [0.0, 1.0, 0.0, 1.0, 0.5], upper_limit=1.0) == [0.0, 1.0]
    assert jackknife_interval(0.5, [0.5] * 5, upper_limit=1.0) == [0.5, 0.5]


def test_below_five_patients_there_is_no_interval():
    for count in range(MIN_PATIENTS):
        assert jackknife_interval(1.0, [1.0] * count) is None
    assert MIN_PATIENTS == 5 and jackknife_interval(1.0, [1.0] * 5) == [1.0, 1.0]


def test_groups_hold_a_patient_and_generated_samples():
    groups = paired_groups(["b", "a", "b", "c"], seed=0)
    assert [rows.tolist() for rows, _ in groups] == [[1], [0, 2], [3]]
    assert [len(made) for _, made in groups] == [1, 2, 1]
    assert sorted(np.concatenate([made for _, made in groups])) == [0, 1, 2, 3]


def test_each_group_is_left_out_once():
    groups = [(np.array([0, 1]), np.array([3, 2])), (np.array([2, 3]), np.array([0, 1]))]
    seen = []
    leave_one_out(groups, 4, lambda real, made: seen.append((real.tolist(), made.tolist())) or 0.0)
    assert seen == [([2, 3], [0, 1]), ([0, 1], [2, 3])]
    assert leave_one_out([(np.arange(3), np.arange(3)), (np.array([3]), np.array([3]))], 4, lambda a, b: 0.0) == []
