"""Which records enter a private step: every unit by its own coin, a pure function of a key and the step's number.

The size of such a batch is drawn by chance and may be zero. Ranks take its records in turn, so that a result does not
depend on their number; a resumed run draws the same batches.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from vesselgan.data.augment import draw_words
from vesselgan.data.patches import Share
from vesselgan.errors import PrivacyError
from vesselgan.shards import ShardSet

_STREAM = 0xD9
_TWO_64 = 2**64


class PoissonShares:
    """One rank's share of the batches at `positions`, for `read_shares`."""

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

    def __iter__(self) -> Iterator[Share]:
        for position in self.positions:
            records = self.batch(position)[self.rank :: self.world_size]
            # A word for every record there is, so that a record's turn does not depend on which others are drawn.
            words = draw_words(self.num_records, self.key, position)[records].tolist() if self.augment else None
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
    """The records of every patch, or of every patient. PrivacyError where one patient may be there under two names."""
    if unit == "patch":
        return [[number] for number in range(len(shards))]
    return list(records_of_patients(shards, must_be_apart=True).values())


def records_of_patients(shards: ShardSet, *, must_be_apart: bool) -> dict[str, list[int]]:
    """Subject -> its records, in their order."""
    found: dict[str, list[int]] = {}
    for number in range(len(shards)):
        found.setdefault(shards.subject(number), []).append(number)
    labels: dict[str, str] = {}
    for name in found if must_be_apart else ():
        label = re.match(r"sub-[0-9A-Za-z]+", name)
        other = labels.setdefault(label.group() if label else name, name)
        if other != name:
            raise PrivacyError(
                f"{shards.folder}: {other} and {name} may be one patient, whom variant.dp.unit=patient would count "
                "twice; give every patient one subject name, or take variant.dp.unit=patch"
            )
    return found
