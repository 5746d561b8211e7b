"""Small shard sets whose patches say who they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vesselgan.formats.shards import Record, ShardSet

from ..conftest import write_shards

SHAPE = (4, 4, 2)


def _record(number: int, origin: str, shape: tuple[int, int, int], *, has_tissue: bool) -> Record:
    """Every image voxel is `number` (but one, 255, one, 0); the label holds its bits, so pairs can be distinguished."""
    image = np.full(shape, number, np.float32)
    image[0, 0, 0], image[-1, -1, -1] = 255, 0
    label = np.zeros(int(np.prod(shape)), np.uint8)
    label[:8] = [number >> bit & 1 for bit in range(8)]
    label = label.reshape(shape)
    score = (label * np.float16(0.5)).astype(np.float16) if origin == "synthetic" else None
    kind = "synthetic" if origin == "synthetic" else "grid"
    tissue = (np.arange(label.size).reshape(shape) % 3).astype(np.uint8) if has_tissue else None
    return Record(image, label, "sub-1", (number, 0, 0), kind, (0.0, 1.0), 0, score, tissue)


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., ShardSet]:
    def make(
        name: str = "real",
        numbers: range = range(10),
        origin: str = "real",
        shape: tuple[int, int, int] = SHAPE,
        has_tissue: bool = False,
    ) -> ShardSet:
        records = [_record(number, origin, shape, has_tissue=has_tissue) for number in numbers]
        return ShardSet(write_shards(tmp_path / name, records, files=2, percentiles=None))

    return make
