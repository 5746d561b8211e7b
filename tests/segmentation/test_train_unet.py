import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vesselgan.config.compose import from_yaml, parse
from vesselgan.core.errors import CheckpointError, DataError, NumericError, UsageError
from vesselgan.models.unet import LEVELS
from vesselgan.segmentation import train as module
from vesselgan.segmentation import unet_trainer
from vesselgan.segmentation import validation as validation_module
from vesselgan.segmentation.predict import load_unet
from vesselgan.segmentation.train import open_shards, train_unet
from vesselgan.segmentation.unet_trainer import seed_dropout
from vesselgan.segmentation.validation import Scores

SMALL = ["unet.filters=[4,8]", "unet.learning_rate=1e-2", "unet.num_workers=0", "unet.batch_size=4", "unet.log_every=2"]


def words(cohort: Path, run_dir: Path, *settings: str) -> list[str]:
    fixed = [f"work_dir={run_dir.parent}", f"data.cohort_dir={cohort}", "data.name=tiny", "runtime.device=cpu"]
    return [*fixed, *SMALL, *settings, "--run_dir", str(run_dir)]


@pytest.fixture
def train(tiny_cohort: Path, afresh: Callable[[], None]) -> Callable[..., dict | None]:
    """Train on the tiny cohort in this process; gives what finished.json says, None without one."""

    def run(run_dir: Path, *settings: str) -> dict | None:
        afresh()
        train_unet(parse("train_unet", None, words(tiny_cohort, run_dir, *settings)))
        finished = run_dir / "finished.json"
        return json.loads(finished.read_text()) if finished.exists() else None

    return run


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"step_{step:08d}" / "unet.safetensors")


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    times = {"time/step_ms", "checkpoint/write_ms", "throughput/patches_per_s"}
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


@pytest.mark.parametrize("preset", ["hilbert", "residual"])
def test_learns_and_names_the_best_checkpoint(train, tmp_path, preset):
    settings = [f"unet={preset}", "unet.max_steps=60", "unet.validate_every=20", "unet.patience=9"]
    facts = train(tmp_path / "run", *settings)
    validations = {row["step"]: row for row in metrics(tmp_path / "run") if "validation/loss" in row}
    assert list(validations) == [20, 40, 60]
    best = min(validations.values(), key=lambda row: row["validation/loss"])
    assert facts["best_checkpoint"] == f"step_{best['step']:08d}"
    assert (
        facts["validation_loss"] == best["validation/loss"] < -0.4
    )  # -0.58 and -0.60 with two threads and one; untrained -0.1
    assert facts["validation_dice"] == best["validation/dice"] > 0.7  # residual 0.86; untrained 0
    assert (facts["steps"], facts["stopped_early"], facts["num_patches"]) == (60, False, 36)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert kept == sorted({"step_00000060", facts["best_checkpoint"]})
    unet = load_unet(weights(tmp_path / "run", 60), from_yaml("train_unet", tmp_path / "run" / "config.yaml"), tmp_path)
    assert {type(level) for level in [*unet.downs, *unet.ups]} == {LEVELS[preset]}


def test_early_stopping_keeps_the_best(train, tmp_path, monkeypatch):
    losses = iter([-0.5, -0.7, -0.6, -0.65, -0.9])
    monkeypatch.setattr(validation_module, "validate", lambda *a, **k: Scores(loss=next(losses), dice=0.5))
    facts = train(tmp_path / "run", "unet.max_steps=10", "unet.validate_every=2", "unet.patience=2")
    assert (facts["steps"], facts["stopped_early"], facts["best_checkpoint"]) == (8, True, "step_00000004")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert kept == ["step_00000004", "step_00000008"]  # the best, and keep_last=1


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """Where the first who asks finds an empty folder, and all others a finished run of GOING_ON; read, not changed."""
    return tmp_path_factory.mktemp("unet") / "straight"


GOING_ON = ["unet.max_steps=8", "unet.validate_every=4", "unet.dropout=0.3", "unet.log_every=3", "unet.keep_last=9"]


@pytest.mark.parametrize(
    ("doing", "asked_by", "at"),
    [("unet_step", "signal", 5), ("validate", "signal", 1), ("validation_image", "file", 1)],
)
def test_a_stopped_run_resumes_to_the_same_bytes(train, straight, tmp_path, monkeypatch, doing, asked_by, at):
    place = unet_trainer if doing == "unet_step" else validation_module
    broken = tmp_path / "broken"
    facts = train(straight, *GOING_ON)
    ask = {"signal": signal_self, "file": (broken / "stop").touch}[asked_by]
    with monkeypatch.context() as patch:
        patch.setattr(place, doing, asking(getattr(place, doing), ask, at))
        assert train(broken, *GOING_ON) is None
    marker = json.loads((broken / "requeue").read_text())
    assert marker["step"] == 5 and ("SIGUSR1" if asked_by == "signal" else "stop") in marker["reason"]
    # What it was asked in the midst of was finished, and taken into the choice.
    assert [row["step"] for row in metrics(broken) if "validation/loss" in row] == [4]
    assert train(broken, *GOING_ON) | {"hours": 0} == facts | {"hours": 0}
    for step in (4, 8):
        assert files_at(broken, step) == files_at(straight, step)
    assert without_times(metrics(broken)) == without_times(metrics(straight))


def signal_self() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def asking(honest: Callable[..., Any], ask: Callable[[], None] = signal_self, at: int = 1) -> Callable[..., Any]:
    """`honest`, in whose call number `at` the run is asked to stop."""
    calls = itertools.count(1)

    def both(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            ask()
        return honest(*arguments, **options)

    return both


def files_at(run_dir: Path, step: int) -> dict[str, bytes]:
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert len(found) == 2
    return found


def test_a_request_at_the_end_stops_nothing(train, tmp_path, monkeypatch):
    monkeypatch.setattr(validation_module, "validate", asking(validation_module.validate))
    assert train(tmp_path / "run", "unet.max_steps=2", "unet.validate_every=2")["steps"] == 2
    assert not (tmp_path / "run" / "requeue").exists()


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the batches at these positions hold one NaN voxel: no shard can, so it is put behind the reader."""

    def at(positions: Any) -> None:
        honest = unet_trainer.stream

        def spoilt(*arguments: Any, **options: Any) -> Iterator[torch.Tensor]:
            for position, batch in zip(itertools.count(options["start"]), honest(*arguments, **options), strict=False):
                if position in positions:
                    batch = batch.clone()
                    batch[0, 0, 5, 4, 3] = torch.nan
                yield batch

        monkeypatch.setattr(unet_trainer, "stream", spoilt)

    return at


def test_bad_patches_for_ever_end_the_run(train, tmp_path, spoil):
    spoil(range(3, 100))
    folder, settings = tmp_path / "run", ["unet.max_steps=50", "unet.validate_every=2", "unet.patience=99"]
    with pytest.raises(NumericError) as error:
        train(folder, *settings, "unet.max_skipped_steps=4", "unet.keep_last=9")
    assert error.value.exit_code == 5
    # Steps 4 to 7 are bad; the checkpoints at 4 and 6, saved among them, hold the weights after step 3.
    for named in ("step 7", "unet.max_skipped_steps=4", "step_00000006", "vesselgan check"):
        assert named in str(error.value)
    fourth, sixth = weights(folder, 4), weights(folder, 6)
    for name, value in fourth.items():
        assert value.isfinite().all() and torch.equal(value, sixth[name]), name
    assert not (folder / "finished.json").exists()


def test_one_bad_batch_costs_one_step(train, tmp_path, spoil):
    each, mean = tmp_path / "each", tmp_path / "mean"
    settings = ["unet.max_steps=4", "unet.validate_every=4"]
    spoil([1, 3])
    facts = train(each, *settings, "unet.log_every=1")
    assert (facts["steps"], facts["skipped_steps"]) == (4, 2)
    lines = [row for row in metrics(each) if "amp/unet_loss_scale" in row]
    assert [row["amp/unet_skipped_total"] for row in lines] == [0, 1, 1, 2]
    assert ["loss/train" in row for row in lines] == [True, False, True, False]
    train(mean, *settings, "unet.log_every=4")
    (line,) = [row for row in metrics(mean) if "amp/unet_loss_scale" in row]
    assert line["loss/train"] == pytest.approx((lines[0]["loss/train"] + lines[2]["loss/train"]) / 2, rel=1e-6)


def test_the_count_of_bad_steps_goes_on(train, tmp_path, spoil, monkeypatch):
    spoil(range(1, 100))
    settings = ["unet.max_steps=50", "unet.validate_every=3", "unet.max_skipped_steps=5", "unet.patience=99"]
    with monkeypatch.context() as patch:
        patch.setattr(validation_module, "validate", asking(validation_module.validate))
        assert train(tmp_path / "run", *settings) is None  # leaves after step 4: 2, 3 and 4 were bad
    with pytest.raises(NumericError, match="step 6"):
        train(tmp_path / "run", *settings)


def test_a_finished_run_is_left_alone(train, tmp_path):
    settings = ["unet.max_steps=2", "unet.validate_every=2"]
    train(tmp_path / "run", *settings)
    before = (tmp_path / "run" / "finished.json").stat().st_mtime_ns
    train(tmp_path / "run", *settings)
    assert (tmp_path / "run" / "finished.json").stat().st_mtime_ns == before
    for word in ("unet.dropout=0.2", "unet.network=residual"):
        key, value = word.split("=")
        with pytest.raises(CheckpointError, match=f"{key}: .* -> {value}.*allow_config_change=.{key}."):
            train(tmp_path / "run", *settings, word)


def test_dropout_depends_on_seed_step_and_rank():
    draws = {}
    for key in [(1, 2, 0), (1, 3, 0), (2, 2, 0), (1, 2, 1)]:
        seed_dropout(*key)
        draws[key] = torch.rand(4)
        seed_dropout(*key)
        assert torch.equal(torch.rand(4), draws[key])
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.soak)])
def test_half_precision_learns_too(train, tmp_path, precision):
    settings = ["unet.max_steps=40", "unet.validate_every=40", f"unet.precision={precision}"]
    facts = train(tmp_path / "run", *settings)
    assert facts["validation_loss"] < -0.3  # fp32 -0.5 at this step; untrained -0.1
    stored = weights(tmp_path / "run", 40)
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float32}


def config_of(cohort: Path, *settings: str):
    return parse("train_unet", None, words(cohort, Path("run"), *settings)).config


def test_sources_are_real_synthetic_or_both(tiny_cohort, synthetic_set):
    sizes = {}
    for source in ("real", "synthetic", "both"):
        words = [f"data.source={source}"] + [f"synthetic={synthetic_set}"] * (source != "real")
        sets, validation = open_shards(config_of(tiny_cohort, *words))
        sizes[source] = [(shards.origin, len(shards)) for shards in sets]
        assert (validation.origin, len(validation)) == ("real", 12)
    real, synthetic = ("real", 36), ("synthetic", 36)
    assert sizes == {"real": [real], "synthetic": [synthetic], "both": [real, synthetic]}


def test_unfit_sets_are_refused(tiny_cohort, synthetic_set, tmp_path):
    with pytest.raises(UsageError, match="synthetic="):
        open_shards(config_of(tiny_cohort, "data.source=synthetic"))
    with pytest.raises(DataError, match="holds real patches"):
        open_shards(config_of(tiny_cohort, "data.source=both", f"synthetic={tiny_cohort}/shards/unet/train"))
    with pytest.raises(UsageError, match="16"):
        open_shards(config_of(tiny_cohort, "unet.filters=[2,2,2,2,2]"))
    leaky = tmp_path / "leaky" / "shards" / "unet"
    leaky.mkdir(parents=True)
    for split in ("train", "validation"):
        (leaky / split).symlink_to(tiny_cohort / "shards" / "unet" / "validation")
    with pytest.raises(DataError, match="sub-3"):
        open_shards(config_of(tmp_path / "leaky"))


def test_labels_that_cannot_teach_are_refused(train, synthetic_set, tmp_path):
    # Scores are 0.1 and 0.8: at 0.05 everything is vessel, at 0.9 nothing.
    for threshold in (0.05, 0.9):
        words = ["data.source=synthetic", f"synthetic={synthetic_set}", f"data.label_threshold={threshold}"]
        with pytest.raises(DataError, match=f"threshold is {threshold}"):
            train(tmp_path / "run", *words)
        assert not (tmp_path / "run" / "checkpoints").exists()


def test_labels_are_shuffled_for_training_alone(tiny_cohort, synthetic_set, tmp_path):
    settings = ["data.source=synthetic", f"synthetic={synthetic_set}", "data.shuffle_labels=true"]
    config = config_of(tiny_cohort, *settings)
    sets, validation_set = open_shards(config)
    training, validation = module._dataset(config, sets), module._dataset(config, validation_set)
    own = [np.array_equal(training[i][1].numpy(), sets[0].label(i, 0.3)) for i in range(len(training))]
    assert np.mean(own) < 0.2  # equal only where two patches happen to have one label
    for i in range(len(validation)):
        assert np.array_equal(validation[i][1].numpy(), validation_set.label(i, 0.3))
    assert 200 < training[0][0].max() <= 255  # the U-Net's BatchNorm takes 0..255


@pytest.mark.parametrize("preset", ["hilbert", pytest.param("residual", marks=pytest.mark.soak)])
def test_two_ranks_equal_one_with_the_joined_batch(train, tiny_cohort, repository, run_on_ranks, tmp_path, preset):
    settings = [f"unet={preset}", "unet.max_steps=5", "unet.validate_every=5", "unet.dropout=0.0"]
    settings += ["unet.learning_rate=1e-3"]
    train(tmp_path / "one", *settings)
    run_on_ranks([f"{repository}/launch/train_unet.py", *words(tiny_cohort, tmp_path / "two", *settings)])
    one, two = weights(tmp_path / "one", 5), weights(tmp_path / "two", 5)
    for name in one:
        # Sums in another order: up to 1e-5 measured. A lost gradient or statistics of half a batch move weights by up
        # to a step of 1e-3 each time.
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-4)
    first, second = (json.loads((tmp_path / run / "finished.json").read_text()) for run in ("one", "two"))
    assert second["validation_loss"] == pytest.approx(first["validation_loss"], abs=1e-5)
    assert (first["ranks"], second["ranks"]) == (1, 2)
