"""Poisson sampling: every unit enters a step independently, as a pure function of a key and the step's position.

The size of a batch is random and may be zero. Ranks take every n-th patch, so results do not depend on their number; a
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
        """units: the patches of each unit; sample_rate: probability that a unit is in a batch."""
        assert 0 < sample_rate < 1, sample_rate
        self.units, self.key, self.positions = units, key, positions
        self.threshold = np.uint64(int(sample_rate * _TWO_64))
        self.max_patches = max(len(patches) for patches in units)
        self.rank, self.world_size, self.augment = rank, world_size, augment
        self.num_patches = 1 + max(max(patches) for patches in units)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[BatchSlice]:
        for position in self.positions:
            patches = self.batch(position)[self.rank :: self.world_size]
            orientations = None
            if self.augment:
                # Drawn for all patches: a patch's orientation does not depend on which others are drawn.
                orientations = sample_orientations(self.num_patches, self.key, position)[patches].tolist()
            yield patches, orientations

    def batch(self, position: int) -> list[int]:
        """The patches of the global batch: one of each sampled unit.

        A sampled unit contributes its patch r, uniform in 0 .. max_patches - 1, or nothing if it has fewer: so every
        patch has the same probability, and removing one changes that of no other.
        """
        philox = np.random.Philox(np.random.SeedSequence((self.key, position, _STREAM)))
        coins, choices = philox.random_raw(2 * len(self.units)).reshape(2, -1)
        sampled = np.flatnonzero(coins < self.threshold).tolist()
        pairs = [(self.units[unit], int(choices[unit] % np.uint64(self.max_patches))) for unit in sampled]
        return [patches[index] for patches, index in pairs if index < len(patches)]


def units_of(shards: ShardSet, unit: str) -> list[list[int]]:
    """The patches of every unit, by index; PrivacyError if units are patients and that of a subject is not known."""
    if unit == "patch":
        return [[number] for number in range(len(shards))]
    if unknown := without_patient(shards):
        raise PrivacyError(
            f"{shards.folder}: the manifest does not say whose {', '.join(unknown[:3])}{' ...' * (len(unknown) > 3)} "
            "are, and one patient under two names would be protected as two people are: start data_prep.build_shards "
            "again, with a column `patient` in data.prepare.split.csv where ids do not tell; or take "
            "variant.dp.unit=patch"
        )
    return list(patches_of_patients(shards).values())


def without_patient(shards: ShardSet) -> list[str]:
    """Subjects without a patient in the manifest."""
    return [name for name, entry in shards.subjects.items() if not entry.get("patient")]


def patches_of_patients(shards: ShardSet) -> dict[str, list[int]]:
    """Patient (or subject, if its patient is not known) -> its patches, in order."""
    patches: dict[str, list[int]] = {}
    for index in range(len(shards)):
        subject = shards.subject(index)
        patches.setdefault(shards.subjects[subject].get("patient") or subject, []).append(index)
    return patches
