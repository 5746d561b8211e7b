"""Label thresholds: scores with a known number of parts at every cut, and what the interface lets be seen."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vesselgan.config.compose import parse
from vesselgan.core.errors import DataError, UsageError
from vesselgan.evaluation.run import evaluate
from vesselgan.formats.shards import Record

from ..conftest import write_shards

PATCH = (8, 8, 8)


def patch(*levels: float) -> np.ndarray:
    """A score with one voxel of each level, none touching another."""
    score = np.zeros(PATCH, np.float16)
    for number, level in enumerate(levels):
        score[2 * (number % 4), 2 * (number // 4 % 4), 0] = level
    return score


def write_set(folder: Path, scores: list[np.ndarray], *, origin: str) -> None:
    records = []
    for number, score in enumerate(scores):
        label = (score >= 0.5).astype(np.uint8)
        kind = ("grid", None) if origin == "real" else ("synthetic", score)
        image = np.zeros(PATCH, np.float32)
        records.append(Record(image, label, f"s-{number}", (0, 0, 0), kind[0], (0.0, 255.0), 0, kind[1]))
    write_shards(folder, records)


def sweep(folder: Path, *words: str) -> dict:
    out = folder / "thresholds.json"
    fixed = ["evaluate=label_threshold", "name=gan", f"data.cohort_dir={folder}", f"out={out}"]
    evaluate(parse("evaluate", None, [*fixed, *words]).config)
    return json.loads(out.read_text())


def test_the_closest_thresholds_are_left(tmp_path):
    # Training labels: 2 and 4 voxels, none touching: fraction 3 / 512, 3 parts a patch.
    write_set(tmp_path / "shards/gan/train", [patch(1, 1), patch(1, 1, 1, 1)], origin="real")
    # At 0.25 six voxels, at 0.5 four, at 0.75 two, at 0.9 none; a patch of zeros beside it halves the means.
    write_set(tmp_path / "synthetic", [patch(0.3, 0.3, 0.6, 0.6, 0.8, 0.8), patch()], origin="synthetic")
    found = sweep(tmp_path, f"labels.synthetic={tmp_path}/synthetic", "labels.thresholds=[0.9,0.25,0.5,0.75]")
    assert found["training"] == {"vessel_fraction": 3 / 512, "num_parts": 3.0, "num_patches": 2}
    rows = {row["threshold"]: row for row in found["thresholds"]}
    assert list(rows) == [0.25, 0.5, 0.75, 0.9]
    assert [row["num_parts"] for row in rows.values()] == [3.0, 2.0, 1.0, 0.0]
    assert rows[0.25]["distance"] == 0.0
    assert rows[0.5]["distance"] == pytest.approx(math.log(3 / 2) + math.log(4 / 3))
    assert rows[0.75]["distance"] == pytest.approx(math.log(3) + math.log(2))
    assert rows[0.9]["distance"] is None  # no vessel at all: never chosen
    assert found["narrowed"] == [0.25, 0.5]
    few = sweep(tmp_path, f"labels.synthetic={tmp_path}/synthetic", "labels.max_patches=1", "labels.num_narrowed=1")
    assert few["training"]["num_patches"] == 1 and len(few["narrowed"]) == 1


def test_thresholds_of_one_label_count_once(tmp_path):
    """Scores of a label that was given are 0 and 1."""
    write_set(tmp_path / "shards/gan/train", [patch(1, 1)], origin="real")
    write_set(tmp_path / "synthetic", [patch(1, 1, 1)], origin="synthetic")
    found = sweep(tmp_path, f"labels.synthetic={tmp_path}/synthetic", "labels.thresholds=[0.25,0.5,0.75]")
    assert len(found["thresholds"]) == 3 and found["narrowed"] == [0.25]


def test_sets_of_the_wrong_kind_are_refused(tmp_path):
    write_set(tmp_path / "shards/gan/train", [patch(1)], origin="real")
    write_set(tmp_path / "synthetic", [patch(0.05)], origin="synthetic")
    with pytest.raises(DataError, match="no score reaches"):
        sweep(tmp_path, f"labels.synthetic={tmp_path}/synthetic")
    with pytest.raises(DataError, match="holds real"):
        sweep(tmp_path, f"labels.synthetic={tmp_path}/shards/gan/train")
    with pytest.raises(UsageError, match="labels.synthetic"):
        sweep(tmp_path)
    assert not (tmp_path / "thresholds.json").exists()


def test_the_choice_reads_no_volume(tmp_path):
    write_set(tmp_path / "shards/gan/train", [patch(1)], origin="real")
    write_set(tmp_path / "synthetic", [patch(0.5)], origin="synthetic")
    # There is no cohort.json: whoever wanted a validation or test subject would fail here.
    whole = sweep(tmp_path, f"labels.synthetic={tmp_path}/synthetic")
    assert set(whole["inputs"]) == {"synthetic", "training"}
