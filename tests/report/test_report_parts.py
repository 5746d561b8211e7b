"""The report's parts: nearest patches, run directories, the choice of samples."""

import numpy as np
import pytest

from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.shards import ShardSet
from vesselgan.report import figures, runs


def test_choice_depends_on_the_seed_alone():
    assert figures.choose(100, 4, stream=0) == figures.choose(100, 4, stream=0)
    assert figures.choose(100, 4, stream=0) == figures.choose(100, 32, stream=0)[:4]
    assert figures.choose(100, 4, stream=0) != figures.choose(100, 4, stream=1)
    assert sorted(figures.choose(3, 8, stream=0)) == [0, 1, 2]


def test_window_makes_vessels_white():
    image, label = np.full((10, 10, 10), 40.0), np.zeros((10, 10, 10), np.uint8)
    image[0, 0, 0], label[0, 0, 0] = 220.0, 1
    sample = figures.Sample(0, "a", "grid", image, label)
    assert figures.window([sample]) == 220.0
    assert figures.window([figures.Sample(0, "a", "grid", image * 0, label * 0)]) == 1.0
    assert figures.window([]) == 255.0


def test_synthetic_label_is_cut_at_the_threshold(road):
    made = ShardSet(road / "runs/demo-gan/synthetic")
    assert figures.read_samples(made, [0], 0.5)[0].label_XYZ.sum() == 16 * 4 * 4
    assert figures.read_samples(made, [0], 0.9)[0].label_XYZ.sum() == 0


def test_damaged_line_inside_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\nrubbish\n{"step": 20}\n')
    with pytest.raises(DataError, match="line 2"):
        runs.read_run(tmp_path)


def test_run_tells_its_variant(road, tmp_path):
    run = runs.read_run(road / "runs/demo-gan")
    assert run.title == "sn_mp (demo-gan)" and run.synthetic is not None and len(run.settings_hash) == 64
    (tmp_path / "bare").mkdir()
    bare = runs.read_run(tmp_path / "bare")
    assert bare.title == "bare" and bare.synthetic is None and not len(bare.steps) and bare.finished is None


def test_a_missing_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        runs.read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name, text", [("config.yaml", "a: ["), ("config.yaml", "3"), ("provenance.json", "{")])
def test_damaged_run_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=name):
        runs.read_run(tmp_path)


def test_the_slice_shown_holds_most_vessel():
    label = np.zeros((4, 4, 6), np.uint8)
    sample = figures.Sample(0, "s", "grid", np.zeros(label.shape), label)
    assert sample.z == 3
    label[:2, 0, 1], label[:3, 0, 5] = 1, 1
    assert sample.z == 5
