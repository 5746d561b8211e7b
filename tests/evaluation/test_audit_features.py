"""Distances of features: what is equal, mirrored, unlike, or empty."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from vesselgan.evaluation.audit_features import feature_distances
from vesselgan.evaluation.features import open_extractor
from vesselgan.metrics.oriented_distances import UNRELATED

SHAPE = (12, 10, 8)


def images(number: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(number, *SHAPE))
    return (100 + 200 * ndimage.gaussian_filter(noise, (0, 1, 1, 1))).astype(np.float32)


def distances(query: np.ndarray, reference: np.ndarray, mirrorings: tuple[tuple[int, ...], ...]) -> np.ndarray:
    extractor = open_extractor("random", None, None, 0)
    return feature_distances(query, reference, extractor, mirrorings=mirrorings, device=torch.device("cpu"))


def test_features_of_copies_are_near():
    real = images(12)
    found = distances(np.concatenate([real, 0.5 * real]), real, ((),))
    assert found.shape == (24, 12) and found.dtype == np.float32
    assert found.argmin(1).tolist() == [*range(12), *range(12)]
    assert np.diag(found).max() == pytest.approx(0, abs=1e-3)
    assert 1 < found[~np.eye(24, 12, dtype=bool)].mean() < 2
    mirrored = distances(real[:, ::-1], real, ((), (0,)))
    assert np.diag(mirrored).max() == pytest.approx(0, abs=1e-3)


def test_images_without_content_are_unrelated():
    real = images(4)
    real[0] = 7
    assert distances(real, real, ((),))[0].tolist() == pytest.approx([UNRELATED] * 4)
