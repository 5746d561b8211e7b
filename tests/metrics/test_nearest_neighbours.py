"""The nearest training patch: hand-made distances, copies however they are lit, any number of blocks."""

import math
from pathlib import Path

import numpy as np
import pytest

from vesselgan.formats.shards import Record, ShardSet
from vesselgan.metrics import nearest_neighbours

from ..conftest import write_shards


def write(folder: Path, images: list[np.ndarray], **facts: dict) -> ShardSet:
    """Image i is of subject sub-(i mod 2)."""
    shape = images[0].shape
    records = [
        Record(image.astype(np.float32), np.zeros(shape, np.uint8), f"sub-{i % 2}", (0, 0, 0), "grid", (0.0, 9.0), 0)
        for i, image in enumerate(images)
    ]
    return ShardSet(write_shards(folder, records, **facts))


def noise(count: int, shape: tuple[int, ...] = (6, 6, 4), seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).uniform(0, 255, (count, *shape)))


def plain(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((nearest_neighbours.standardise(a) - nearest_neighbours.standardise(b)) ** 2)))


def test_standardised_distance_of_known_vectors():
    a = np.array([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1)
    b = np.array([1.0, 1.0, -1.0, -1.0]).reshape(4, 1, 1)
    np.testing.assert_allclose(nearest_neighbours.standardise(5 * a + 7), a.ravel(), atol=1e-6)  # float32
    assert plain(a, b) == pytest.approx(math.sqrt(2))  # orthogonal unit-variance vectors: mean square difference 2
    assert not nearest_neighbours.standardise(np.full((2, 2, 2), 3.0)).any()


def test_a_copy_is_found_in_any_brightness(tmp_path):
    training = write(tmp_path, noise(10))
    found = nearest_neighbours.nearest([training.image(7), training.image(2) * 0.5 + 3], training)
    assert [(n.index, n.subject) for n in found] == [(7, "sub-1"), (2, "sub-0")]
    assert max(n.distance for n in found) < 5e-3  # float32: 1 - correlation loses half the digits


@pytest.mark.parametrize("most_bytes", [1, 2**30])
@pytest.mark.parametrize("shape", [(6, 6, 4), (5, 5, 3), (4, 6, 1)])
def test_nearest_equals_plain_search(tmp_path, monkeypatch, most_bytes, shape):
    monkeypatch.setattr(nearest_neighbours, "BLOCK", 3)
    monkeypatch.setattr(nearest_neighbours, "MAX_BYTES", most_bytes)
    training, asked = write(tmp_path, noise(10, shape)), noise(4, shape, seed=1)
    distances = [[plain(a, training.image(i)) for i in range(10)] for a in asked]
    found = nearest_neighbours.nearest(iter(asked), training)
    assert [n.index for n in found] == np.argmin(distances, axis=1).tolist()
    assert [n.distance for n in found] == pytest.approx(np.min(distances, axis=1).tolist(), rel=1e-4)  # float32


def test_the_own_patient_can_be_left_out(tmp_path):
    training = write(tmp_path, noise(6))
    own, other, nobody = nearest_neighbours.nearest(
        [training.image(0)] * 3, training, excluded_patients=[None, "sub-0", "sub-1"]
    )
    assert own.index == 0 and own.distance < 5e-3 and nobody.index == 0
    assert other.subject == "sub-1" and other.distance > 0.1
    alone = write(tmp_path / "alone", noise(1))
    assert nearest_neighbours.nearest([alone.image(0)], alone, excluded_patients=["sub-0"]) == [None]
    visits = write(tmp_path / "visits", noise(6), subjects={f"sub-{i}": {"patient": "ann"} for i in (0, 1)})
    assert nearest_neighbours.nearest([visits.image(0)], visits, excluded_patients=["ann"]) == [None]


def test_a_constant_patch_resembles_constant_ones_alone(tmp_path):
    flat = np.full((6, 6, 4), 20.0)
    training = write(tmp_path, [flat, *noise(1)])
    one, two = nearest_neighbours.nearest([flat + 9, -training.image(1)], training)
    assert (one.index, one.distance) == (0, 0.0)
    assert (two.index, two.distance) == (0, pytest.approx(math.sqrt(2)))  # its negative lies at distance 2
