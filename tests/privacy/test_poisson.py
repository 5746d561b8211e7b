"""Poisson batches: each unit by its own coin, the same on any ranks, from any position, for any worker."""

import numpy as np
import pytest

from vesselgan.core.errors import PrivacyError
from vesselgan.privacy.poisson import PoissonSampler, units_of


def shares(units: list[list[int]], rate: float, *, start: int = 0, stop: int = 2000, rank: int = 0, ranks: int = 1,
           key: int = 11) -> PoissonSampler:  # fmt: skip
    return PoissonSampler(
        units, sample_rate=rate, key=key, positions=range(start, stop), rank=rank, world_size=ranks, augment=False
    )


def test_every_unit_has_its_own_coin():
    units, rate, rounds = [[i] for i in range(50)], 0.04, 2000
    taken = np.zeros((rounds, 50), bool)
    for position, (records, _) in enumerate(shares(units, rate)):
        taken[position, records] = True
    # 2,000 coins each: five standard errors of a mean are 0.022, of the mean over all 100,000 0.0031.
    assert np.abs(taken.mean(0) - rate).max() < 0.022 and abs(taken.mean() - rate) < 0.0031
    sizes = taken.sum(1)
    # Binomial(50, 0.04): variance 1.92, its standard error 0.06; empty with chance 0.96^50 = 0.130, error 0.0075.
    assert sizes.var() == pytest.approx(1.92, abs=0.3) and (sizes == 0).mean() == pytest.approx(0.130, abs=0.038)
    together = np.corrcoef(taken.T)[~np.eye(50, dtype=bool)]
    assert np.abs(together).max() < 0.13  # 1 / sqrt(2000) = 0.022; the largest of 1,225 lies near 3.5 of these


def test_batches_depend_on_key_and_position_alone():
    units = [[i] for i in range(40)]
    whole = [records for records, _ in shares(units, 0.2, stop=20)]
    assert [records for records, _ in shares(units, 0.2, start=13, stop=20)] == whole[13:]
    assert [records for records, _ in shares(units, 0.2, stop=20, key=12)] != whole
    three = [[records for records, _ in shares(units, 0.2, stop=20, rank=rank, ranks=3)] for rank in range(3)]
    dealt = [sorted(sum(parts, [])) for parts in zip(*three, strict=True)]
    assert dealt == [sorted(records) for records in whole]


def test_every_record_has_the_same_chance():
    units = [[0, 1, 2, 3], [4]]
    counts = np.zeros(5)
    for records, _ in shares(units, 0.5, stop=8000):
        assert len(records) <= 2
        counts[records] += 1
    # 0.5 / 4 each, also for the patient with a single patch; five standard errors of 8,000 draws are 0.0185.
    assert np.abs(counts / 8000 - 0.125).max() < 0.0185


def test_a_records_turn_depends_on_no_other_record():
    def turns(rank: int, ranks: int, gone: int | None = None) -> dict[tuple[int, int], int]:
        taken = PoissonSampler(
            [[i] for i in range(40)], sample_rate=0.2, key=11, positions=range(20), rank=rank, world_size=ranks,
            augment=True,
        )  # fmt: skip
        whole = taken.batch
        taken.batch = lambda position: [record for record in whole(position) if record != gone]
        dealt = enumerate(taken)
        return {(at, r): word for at, (records, words) in dealt for r, word in zip(records, words, strict=True)}

    alone = turns(0, 1)
    assert len(alone) > 100 and turns(0, 3) | turns(1, 3) | turns(2, 3) == alone
    assert turns(0, 1, gone=5) == {place: word for place, word in alone.items() if place[1] != 5}


class Named:
    """As much of a ShardSet as the grouping asks for."""

    folder = "shards"

    def __init__(self, *names: str, patients: dict[str, str | None] | None = None) -> None:
        self.names = names
        self.subjects = {name: {} if patients is None else {"patient": patients[name]} for name in names}

    def __len__(self) -> int:
        return len(self.names)

    def subject(self, number: int) -> str:
        return self.names[number]


def test_patches_are_grouped_by_patient():
    patients = {"anon-1": "anon-p", "PAT02": "PAT02", "anon-2": "anon-p"}
    there = Named("anon-1", "PAT02", "anon-2", "anon-1", patients=patients)
    assert units_of(there, "patient") == [[0, 2, 3], [1]] and units_of(there, "patch") == [[0], [1], [2], [3]]


@pytest.mark.parametrize("patients", [None, {"PAT01_visit1": "PAT01", "anon-2": None}])
def test_a_subject_of_unknown_patient_is_refused(patients):
    there = Named("PAT01_visit1", "anon-2", patients=patients)
    with pytest.raises(PrivacyError, match="anon-2.*`patient`") as raised:
        units_of(there, "patient")
    assert raised.value.exit_code == 7
    assert units_of(there, "patch") == [[0], [1]]
