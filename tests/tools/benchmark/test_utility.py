"""What recipes teach at equal compute, on a phantom small enough for a test."""

import json

import pytest

from vesselgan.config.compose import compose
from vesselgan.tools.benchmark import utility
from vesselgan.tools.benchmark.pipeline import Pipeline

RECIPE = "variant=flow preset=demo_flow variant.width=8 variant.flow.num_steps=2 variant.label_threshold=1e-3"

PHANTOM = ["phantom.shape=[48,48,24]", "phantom.spacing_mm=[2.5,3,3.2]", "phantom.num_subjects=4"]
SHARDS = ["data.prepare.split.validation=1", "data.prepare.split.test=2", "data.prepare.max_clipped_vessel_share=1"]
SHARDS += ["data.prepare.num_vessel_patches_gan=20", "data.prepare.num_vessel_patches_unet=20"]


@pytest.mark.soak
def test_recipes_are_scored_at_equal_seconds(tmp_path, monkeypatch, capsys):
    unet = ["preset=demo", "unet.max_steps=4", "unet.filters=[4,8]"]
    kept = Pipeline(tmp_path, ["data=phantom", f"work_dir={tmp_path}"], unet)
    kept.make_phantom(PHANTOM, SHARDS)
    monkeypatch.setattr(utility._Recipes, "_pipeline", kept)
    monkeypatch.setattr(utility, "TURNS", 2)
    words = [f'recipes=["{RECIPE}"]', "seconds=[2]", "num_samples=32", f"out={tmp_path}", "target=utility"]
    utility.run(compose("benchmark", words))
    rows = {row["source"]: row for row in json.loads((tmp_path / "recipes.json").read_text())}
    assert list(rows) == ["threshold", "real", "real, labels shuffled", RECIPE]
    trained = rows[RECIPE]
    assert 0 < trained["device_s"] < 60 and trained["steps"] > 0  # starts and ends take as long as so short a training
    assert all(0 <= row["all"] <= 1 and 0 <= row["intracranial"] <= 1 for row in rows.values())
    assert (tmp_path / "dice.svg").read_text().startswith("<?xml")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob("*/checkpoints/*"))
    utility.run(compose("benchmark", words))  # nothing is measured twice
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob("*/checkpoints/*"))
