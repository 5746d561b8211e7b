"""Which records enter a private step: every unit by its own coin, a pure function of a key and the step's number.

The size of such a batch is drawn by chance and may be zero. Ranks take its records in turn, so that a result does not
depend on their number; a resumed run draws the same batches.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from vesselgan.core.errors import PrivacyError
from vesselgan.data.augment import sample_orientations
from vesselgan.data.patches import BatchSlice
from vesselgan.formats.shards import ShardSet

_STREAM = 0xD9
_TWO_64 = 2**64


class PoissonShares:
    """One rank's share of the batches at `positions`, for `read_batches`."""

    def __init__(
        self,
        units: Sequence[Sequence[int]],
        *,
        sample_rate: float,
        key: int,
        positions: range,
        rank: int,
        world_size: int,
        augment: bool,
    ) -> None:
        """units: the records of each; sample_rate: chance of a unit to be in a batch."""
        assert 0 < sample_rate < 1, sample_rate
        self.units, self.key, self.positions = units, key, positions
        self.threshold = np.uint64(int(sample_rate * _TWO_64))
        self.most = max(len(records) for records in units)
        self.rank, self.world_size, self.augment = rank, world_size, augment
        self.num_records = 1 + max(max(records) for records in units)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[BatchSlice]:
        for position in self.positions:
            records = self.batch(position)[self.rank :: self.world_size]
            # A word for every record there is, so that a record's turn does not depend on which others are drawn.
            words = (
                sample_orientations(self.num_records, self.key, position)[records].tolist() if self.augment else None
            )
            yield records, words

    def batch(self, position: int) -> list[int]:
        """The records of the whole batch: one of each unit that its coin took.

        A unit shows record number r of 0 .. most - 1, all equally likely, and nothing where it has no such record: so
        a record is shown with one and the same chance whoever it belongs to, and taking one away changes no other's.
        """
        source = np.random.Philox(np.random.SeedSequence((self.key, position, _STREAM)))
        coins, shown = source.random_raw(2 * len(self.units)).reshape(2, -1)
        taken = np.flatnonzero(coins < self.threshold)
        places = [(self.units[unit], int(shown[unit] % np.uint64(self.most))) for unit in taken]
        return [records[place] for records, place in places if place < len(records)]


def units_of(shards: ShardSet, unit: str) -> list[list[int]]:
    """The records of every patch, or of every patient. PrivacyError where a subject's patient is not known."""
    if unit == "patch":
        return [[number] for number in range(len(shards))]
    if unnamed := without_patient(shards):
        raise PrivacyError(
            f"{shards.folder}: the manifest does not say whose {', '.join(unnamed[:3])}{' ...' * (len(unnamed) > 3)} "
            "are, and one patient under two names would be protected as two people are: start data_prep.build_shards "
            "again, with a column `patient` in data.prepare.split.csv where ids do not tell; or take "
            "variant.dp.unit=patch"
        )
    return list(records_of_patients(shards).values())


def without_patient(shards: ShardSet) -> list[str]:
    """Subjects of whom the manifest does not say which patient they are."""
    return [name for name, entry in shards.subjects.items() if not entry.get("patient")]


def records_of_patients(shards: ShardSet) -> dict[str, list[int]]:
    """Patient, or subject where no patient is named -> its records, in their order."""
    found: dict[str, list[int]] = {}
    for number in range(len(shards)):
        name = shards.subject(number)
        found.setdefault(shards.subjects[name].get("patient") or name, []).append(number)
    return found
