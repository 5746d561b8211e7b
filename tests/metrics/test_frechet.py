import numpy as np
import pytest
from scipy import linalg

from vesselgan.core.errors import DataError
from vesselgan.metrics.frechet import frechet_distance


def exact_sample(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """[count, F] whose sample mean and covariance (n - 1) are exactly these, up to rounding."""
    raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def random_covariance(size: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


def naive(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook's formula with a matrix root."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a @ cov_b).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_diagonal_gaussians_match_paper_and_pencil():
    # |(1, 2, 2)|^2 + (3 - 1)^2 + (2 - 2)^2 + (1 - 4)^2: standard deviations subtract where the axes agree.
    a = exact_sample(np.array([0.0, 0, 0]), np.diag([9.0, 4, 1]), 50, 0)
    b = exact_sample(np.array([1.0, 2, 2]), np.diag([1.0, 4, 16]), 70, 1)
    assert frechet_distance(a, b) == pytest.approx(9 + 4 + 0 + 9, abs=1e-6)


def test_gaussians_match_the_closed_form():
    mean, cov_a, cov_b = np.arange(6) / 10, random_covariance(6, 2), random_covariance(6, 3)
    a, b = exact_sample(np.zeros(6), cov_a, 40, 4), exact_sample(mean, cov_b, 40, 5)
    # (A^(1/2) B A^(1/2))^(1/2) by eigenvalues of a symmetric matrix.
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root)).sum()
    expected = (mean**2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_it_equals_the_matrix_root():
    source = np.random.default_rng(6)
    a, b = source.normal(size=(200, 20)), source.normal(0.2, 1.3, size=(150, 20))
    # 1e-9: the root of a well-conditioned matrix keeps about ten digits.
    assert frechet_distance(a, b) == pytest.approx(naive(a, b), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_identical_sets_are_at_zero():
    source = np.random.default_rng(7)
    assert frechet_distance(*[source.normal(size=(300, 64))] * 2) < 1e-9
    few = source.normal(size=(10, 64)).astype(np.float32)
    with pytest.warns(RuntimeWarning, match="rank 9"):
        assert frechet_distance(few, few) < 1e-9
    twins = np.repeat(few[:5], 2, axis=0)
    with pytest.warns(RuntimeWarning):
        assert frechet_distance(twins, twins) < 1e-9


def test_it_is_stable_without_full_rank():
    # Seven and nine samples in 40 dimensions; embedding them keeps the distance, so the small space is the reference.
    source = np.random.default_rng(8)
    a, b = source.normal(size=(7, 5)), source.normal(1, 2, size=(9, 5))
    turn, _ = np.linalg.qr(source.normal(size=(40, 40)))
    with pytest.warns(RuntimeWarning):
        found = frechet_distance(a @ turn[:5], b @ turn[:5])
    assert found == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert found == pytest.approx(naive(a, b), rel=1e-7)


def test_a_shift_alone_counts_its_square():
    a = np.random.default_rng(9).normal(size=(60, 8))
    assert frechet_distance(a, a + 3) == pytest.approx(8 * 9, rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "record"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "features_a"),
        (np.zeros((5, 3)), np.zeros(3), "features_b"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "3 and 4"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "finite"),
    ],
)
def test_what_has_no_distance_is_refused(a, b, record):
    with pytest.raises(DataError, match=record):
        frechet_distance(a, b)
