"""What recipes teach at equal compute: with a pipeline that only notes what it is asked, and on a small phantom."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vesselgan.config.compose import compose, config_hash
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.run_dir import RunDir
from vesselgan.tools.benchmark import utility
from vesselgan.tools.benchmark.pipeline import Pipeline, dice_of_fitted_threshold

from ...conftest import write_subject

RECIPE = "variant=flow preset=demo_flow variant.width=8 variant.flow.num_steps=2 variant.label_threshold=1e-3"
PHANTOM = ["phantom.shape=[48,48,24]", "phantom.spacing_mm=[2.5,3,3.2]", "phantom.num_subjects=4"]
SHARDS = ["data.prepare.split.validation=1", "data.prepare.split.test=2", "data.prepare.max_clipped_vessel_share=1"]
SHARDS += ["data.prepare.num_vessel_patches_gan=20", "data.prepare.num_vessel_patches_unet=20"]


class NotingPipeline(Pipeline):
    """Trains nothing: a training's log says `step_ms` for every step, and Dice is 0.5."""

    calls: list[str]
    step_ms: dict[str, float]
    """Of a training whose run directory is a probe's, or another."""

    def launch(self, name: str, *arguments: str) -> float:
        self.calls.append(name)
        if name == "train_gan":
            run_dir = Path(arguments[arguments.index("--run_dir") + 1])
            steps = next(int(word.partition("=")[2]) for word in arguments if word.startswith("train.max_steps="))
            step_ms = self.step_ms["probe" if "train.image_every=1000000" in arguments else "training"]
            run_dir.mkdir()  # nothing is trained twice
            rows = [
                {"step": step, "time/step_ms": step_ms} for step in range(steps // 6 or 1, steps + 1, steps // 6 or 1)
            ]
            rows += [{"step": steps, "time/step_ms": step_ms}]
            (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return 3.0

    def make_phantom(self, cohort: list[str], shards: list[str]) -> None:
        self.calls.append("make_phantom")

    def dice_of_unet(self, name: str, split: str, *learn: str) -> dict[str, float]:
        self.calls.append(next(word for word in learn if "source" in word))
        seed = next(int(word.partition("=")[2]) for word in learn if word.startswith("unet.seed="))
        return {"all": seed / 1000, "intracranial": 0.5}


@pytest.fixture
def noting(tmp_path, monkeypatch):
    """Measures with settings in place of the defaults; returns what it wrote and the calls that it made."""
    pipeline = NotingPipeline(tmp_path, ["data=phantom", f"work_dir={tmp_path}"], ["preset=demo"])
    object.__setattr__(pipeline, "step_ms", {"probe": 100.0, "training": 100.0})
    monkeypatch.setattr(utility, "_pipeline", lambda config, out: pipeline)
    monkeypatch.setattr(utility, "_cohort_hash", lambda folder: "cohort")
    monkeypatch.setattr(utility, "dice_of_fitted_threshold", lambda folder, split: {"all": 0.4, "intracranial": 0.4})

    def measure(*words: str) -> tuple[list[dict[str, Any]], list[str]]:
        object.__setattr__(pipeline, "calls", [])
        settings = [
            "target=utility",
            f"out={tmp_path}",
            'recipes=["variant=sn"]',
            "seconds=[20]",
            "num_seeds=1",
            *words,
        ]
        utility.run(compose("benchmark", settings))
        return json.loads((tmp_path / "recipes.json").read_text()), pipeline.calls

    measure.step_ms = pipeline.step_ms
    return measure


def test_device_seconds_are_the_trainings_own(noting, caplog, monkeypatch):
    monkeypatch.setattr(utility.log, "propagate", True)
    *_, row = noting()[0]
    assert (row["steps"], row["step_s"]) == (200, 0.1)  # 20 s of 0.1 s
    assert row["device_s"] == pytest.approx(20) and row["deviation_percent"] == pytest.approx(0)
    assert not caplog.records or "equal compute" not in caplog.text
    noting.step_ms["training"] = 140.0
    *_, row = noting("seconds=[10]")[0]
    assert row["steps"] == 100 and row["step_s"] == 0.1
    assert row["device_s"] == pytest.approx(14) and row["deviation_percent"] == pytest.approx(40)
    assert "trained for 14 s where 10 were asked for" in caplog.text


def test_log_of_a_resumed_run_counts_each_step_once(tmp_path):
    # Steps 1-4 of 1 s, then stopped after step 6 and resumed from a checkpoint of step 5, steps of 2 s.
    entries = [(2, 1000), (4, 1000), (6, 9000), (6, 2000), (7, 2000)]
    text = "".join(json.dumps({"step": step, "time/step_ms": ms}) + "\n" for step, ms in entries)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert utility._measured(RunDir(tmp_path)) == (7, 4 * 1 + 3 * 2)


def test_nothing_is_measured_twice(noting):
    before, calls = noting("seconds=[20,40]")
    assert calls.count("train_gan") == 3 + 2 and calls.count("data.source=synthetic") == 2
    after, calls = noting("seconds=[20,40]")
    assert calls == ["make_phantom"] and after == before  # the stub made no manifests
    _, calls = noting("seconds=[20,40,60]", "num_samples=8")  # real patches and probes need no samples
    assert calls.count("train_gan") == 3 and "data.source=real" not in calls


def test_other_content_is_measured_anew(noting, monkeypatch):
    noting()
    monkeypatch.setattr(utility, "_cohort_hash", lambda folder: "another")
    assert noting()[1].count("train_gan") == 4
    monkeypatch.setattr(utility, "_config_hash", lambda recipe, pipeline: "edited")
    calls = noting()[1]
    assert calls.count("train_gan") == 4 and "data.source=real" not in calls
    monkeypatch.setattr(utility, "config_hash", lambda config: "edited")  # of the U-Net
    calls = noting()[1]
    assert calls.count("train_gan") == 1 and calls.count("data.source=real") == 2
    monkeypatch.setattr(utility, "__version__", "9.9.9")
    assert noting()[1].count("train_gan") == 4


def test_another_machine_probes_anew_and_keeps_rows(noting, monkeypatch):
    *_, before = noting()[0]
    noting.step_ms["probe"] = 50.0
    monkeypatch.setattr(utility, "device_name", lambda device: "another")
    rows, calls = noting("seconds=[20,40]")
    assert calls.count("train_gan") == 3 + 1  # the row of 20 s is there
    assert rows[-2] == before and (before["step_s"], before["steps"]) == (0.1, 200)
    assert (rows[-1]["step_s"], rows[-1]["steps"]) == (0.05, 800)


def test_stopped_training_is_no_obstacle_to_another_step_time(noting, tmp_path, monkeypatch):
    *_, row = noting()[0]
    (tmp_path / f"{row['name']}.row.json").unlink()  # as if stopped before its end
    noting.step_ms["probe"] = 50.0
    monkeypatch.setattr(utility, "device_name", lambda device: "another")
    *_, again = noting()[0]
    assert again["name"] == row["name"] and again["run"] != row["run"]


def test_table_ends_with_means_over_seeds(noting, tmp_path, capsys):
    rows, _ = noting("num_seeds=3")
    assert [row["seed"] for row in rows if row["source"] == "variant=sn"] == [990, 991, 992]
    table = pd.read_csv(tmp_path / "recipes.csv", dtype={"seed": str})
    means = table[len(rows) :]
    assert list(means["source"]) == [utility.THRESHOLD, "real", "real, labels shuffled", "variant=sn"]
    assert list(means["seed"]) == ["mean of 1", "mean of 3", "mean of 1", "mean of 3"]
    np.testing.assert_allclose(means["all"], [0.4, 0.991, 0.99, 0.991])
    assert means["step_s"].iloc[-1] == pytest.approx(0.1) and means["seconds"].iloc[-1] == 20
    printed = capsys.readouterr().out
    assert "mean of 3" in printed and "deviation_percent" in printed and "step_s" in printed


def test_default_has_three_seeds():
    assert compose("benchmark", ["target=utility"]).num_seeds == 3


@pytest.mark.parametrize("setting", ["seconds=[]", "seconds=[20,20.0]", "seconds=[20,-1]", "recipes=[]"])
def test_empty_and_repeated_lists_are_refused(setting):
    with pytest.raises(UsageError, match=setting.partition("=")[0]):
        compose("benchmark", ["target=utility", setting])
    with pytest.raises(UsageError, match="each once"):
        compose("benchmark", ["target=utility", 'recipes=["variant=sn","variant=sn"]'])


@pytest.mark.parametrize(
    "recipe",
    [
        "variant=flow bogus=1",
        "variant=flow_label data.augment=true",
        "variant=nothing",
        'preset=\\"demo',
        "--help",
        "variant=sn train.max_steps=5",
        "variant=sn data=pairs",
    ],
)
def test_recipe_that_does_not_compose_makes_nothing(recipe, tmp_path):
    out = tmp_path / "out"
    config = compose("benchmark", ["target=utility", f'recipes=["variant=sn","{recipe}"]', f"out={out}"])
    with pytest.raises(UsageError, match="recipes: "):
        utility.run(config)
    assert not out.exists()


def test_recipes_hash_changes_with_its_settings_alone(tmp_path):
    pipelines = [Pipeline(tmp_path, ["data=phantom", f"work_dir={tmp_path / name}"], []) for name in "ab"]
    here, elsewhere = (utility._config_hash("variant=sn preset=demo", pipeline) for pipeline in pipelines)
    assert here == elsewhere != utility._config_hash("variant=sn preset=demo variant.width=8", pipelines[0])
    assert here == config_hash(compose("train_gan", ["variant=sn", "preset=demo"]))


def test_threshold_is_fitted_where_it_is_scored(tmp_path):
    label_XYZ = np.zeros((4, 2, 2), np.uint8)
    label_XYZ[2:] = 1
    bright_XYZ = np.array([0, 60, 100, 200], np.float32)[:, None, None] * np.ones((4, 2, 2), np.float32)
    # The two volumes separate below 100 and below 50: one threshold for both leaves one slab of the second's.
    arrays = [{"image": bright_XYZ, "label": label_XYZ}, {"image": bright_XYZ / 2, "label": label_XYZ}]
    subjects = {
        f"sub-{n}": write_subject(tmp_path / f"sub-{n}", "validation", volumes, np.eye(4), limits=(0.0, 255.0))
        for n, volumes in enumerate(arrays)
    }
    Cohort("c", (0.0, 100.0), subjects).write(tmp_path)
    # Above 30 and up to 50: all four slabs but one background slab of the first, Dice 2 * 8 / (8 + 12) and 1.
    assert dice_of_fitted_threshold(tmp_path, "validation") == {"all": pytest.approx((0.8 + 1) / 2)}
    with pytest.raises(DataError):
        utility._cohort_hash(tmp_path)  # no shards


@pytest.mark.soak
def test_recipes_are_scored_on_a_small_phantom(tmp_path, monkeypatch):
    unet = ["preset=demo", "unet.max_steps=4", "unet.filters=[4,8]"]
    pipeline = Pipeline(tmp_path, ["data=phantom", f"work_dir={tmp_path}"], unet)
    pipeline.make_phantom(PHANTOM, SHARDS)
    monkeypatch.setattr(utility, "_pipeline", lambda config, out: pipeline)
    monkeypatch.setattr(utility, "TURNS", 2)
    words = [f'recipes=["{RECIPE}"]', "seconds=[2]", "num_samples=32", "num_seeds=1", f"out={tmp_path}"]
    utility.run(compose("benchmark", ["target=utility", *words]))
    rows = {row["source"]: row for row in json.loads((tmp_path / "recipes.json").read_text())}
    assert list(rows) == [utility.THRESHOLD, "real", "real, labels shuffled", RECIPE]
    trained = rows[RECIPE]
    # The clock of the training itself, which holds the steps and no more, bounds what its log says.
    finished = RunDir(tmp_path / trained["run"]).finished()
    assert finished["steps"] == trained["steps"] == round(2 / trained["step_s"])
    assert 0 < trained["device_s"] <= 3600 * finished["hours"]
    assert all(0 <= row["all"] <= 1 and 0 <= row["intracranial"] <= 1 for row in rows.values())
    assert (tmp_path / "dice.svg").read_text().startswith("<?xml")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*")}
    (tmp_path / f"{trained['name']}.row.json").unlink()  # as if stopped before its end: all its commands are resumed
    utility.run(compose("benchmark", ["target=utility", *words]))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*")}
    again = json.loads((tmp_path / "recipes.json").read_text())[-1]
    assert {**again, "sampling_s": 0} == {**trained, "sampling_s": 0}
