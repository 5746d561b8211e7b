"""Poisson sampling: every unit enters a step independently, as a pure function of a key and the step's position.

The size of a batch is random and may be zero. Ranks take every n-th record, so results do not depend on their number; a
resumed run draws the same batches.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from vesselgan.core.errors import PrivacyError
from vesselgan.data.augment import sample_orientations
from vesselgan.data.patches import BatchSlice
from vesselgan.formats.shards import ShardSet

_STREAM = 0xD9
_TWO_64 = 2**64


class PoissonSampler:
    """One rank's slice of the batches at `positions`, for `read_batches`."""

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
        """units: the records of each unit; sample_rate: probability that a unit is in a batch."""
        assert 0 < sample_rate < 1, sample_rate
        self.units, self.key, self.positions = units, key, positions
        self.threshold = np.uint64(int(sample_rate * _TWO_64))
        self.max_records = max(len(records) for records in units)
        self.rank, self.world_size, self.augment = rank, world_size, augment
        self.num_records = 1 + max(max(records) for records in units)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[BatchSlice]:
        for position in self.positions:
            records = self.batch(position)[self.rank :: self.world_size]
            orientations = None
            if self.augment:
                # Drawn for all records: a record's orientation does not depend on which others are drawn.
                orientations = sample_orientations(self.num_records, self.key, position)[records].tolist()
            yield records, orientations

    def batch(self, position: int) -> list[int]:
        """The records of the global batch: one of each sampled unit.

        A sampled unit contributes its record r, uniform in 0 .. max_records - 1, or nothing if it has fewer: so every
        record has the same probability, and removing one changes that of no other.
        """
        philox = np.random.Philox(np.random.SeedSequence((self.key, position, _STREAM)))
        coins, choices = philox.random_raw(2 * len(self.units)).reshape(2, -1)
        sampled = np.flatnonzero(coins < self.threshold).tolist()
        pairs = [(self.units[unit], int(choices[unit] % np.uint64(self.max_records))) for unit in sampled]
        return [records[index] for records, index in pairs if index < len(records)]


def units_of(shards: ShardSet, unit: str) -> list[list[int]]:
    """The records of every patch, or of every patient; PrivacyError if the patient of a subject is not known."""
    if unit == "patch":
        return [[number] for number in range(len(shards))]
    if unknown := without_patient(shards):
        raise PrivacyError(
            f"{shards.folder}: the manifest does not say whose {', '.join(unknown[:3])}{' ...' * (len(unknown) > 3)} "
            "are, and one patient under two names would be protected as two people are: start data_prep.build_shards "
            "again, with a column `patient` in data.prepare.split.csv where ids do not tell; or take "
            "variant.dp.unit=patch"
        )
    return list(records_of_patients(shards).values())


def without_patient(shards: ShardSet) -> list[str]:
    """Subjects without a patient in the manifest."""
    return [name for name, entry in shards.subjects.items() if not entry.get("patient")]


def records_of_patients(shards: ShardSet) -> dict[str, list[int]]:
    """Patient (or subject, if its patient is not known) -> its records, in order."""
    records: dict[str, list[int]] = {}
    for index in range(len(shards)):
        subject = shards.subject(index)
        records.setdefault(shards.subjects[subject].get("patient") or subject, []).append(index)
    return records
