"""Linkage of a second visit to the first, by paper and pencil."""

import numpy as np

from vesselgan.privacy.attacks.linkage import link

PEOPLE = [f"p{i}" for i in range(8)]


def far_but(pairs: dict[int, int]) -> np.ndarray:
    """8 x 8 distances of 1, but 0.1 for these pairs."""
    distance = np.ones((8, 8))
    for row, column in pairs.items():
        distance[row, column] = 0.1
    return distance


def test_copies_link_visits_and_others_do_not():
    own, shifted = far_but({i: i for i in range(8)}), far_but({i: (i + 1) % 8 for i in range(8)})
    found = link(own, own, own, shifted, PEOPLE, PEOPLE, seed=0)
    assert (found.patients, found.linked, found.control, found.through) == (8, 8, 0, 8)
    assert found.p == 0.5**8


def test_likeness_of_visits_alone_is_no_finding():
    own = far_but({i: i for i in range(8)})
    found = link(np.repeat(own, 3, 0), np.repeat(own, 3, 0), own, own, PEOPLE, PEOPLE, seed=0)
    assert found.through == 8 and found.control == 8 and found.p == 1.0
