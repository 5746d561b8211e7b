"""What is not finite in a real run: skipped and logged; too often: exit 5 with the last good checkpoint named."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vesselgan.core.errors import NumericError, UsageError
from vesselgan.training import gan, gan_trainer

FP32 = ("variant=sn", "variant.precision=fp32")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the batches at these positions hold one NaN voxel: no shard can, so it is put behind the reader."""

    def at(positions: Any) -> None:
        honest = gan_trainer.stream

        def spoilt(*words: Any, **options: Any) -> Iterator[Tensor]:
            for position, batch in zip(itertools.count(options["start"]), honest(*words, **options), strict=False):
                if position in positions:
                    batch = batch.clone()
                    batch[0, 0, 5, 4, 3] = torch.nan
                yield batch

        monkeypatch.setattr(gan_trainer, "stream", spoilt)

    return at


def logged(run_dir: Path) -> list[dict[str, float]]:
    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON number")

    return [json.loads(line, parse_constant=refuse) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_one_bad_batch_costs_one_critic_step(train_here, tmp_path, spoil):
    spoil([1])
    assert train_here(tmp_path / "run", *FP32, "train.max_steps=4")["steps"] == 4
    lines = logged(tmp_path / "run")
    assert [line["amp/critic_skipped"] for line in lines] == [0, 1, 0, 0]
    assert [line["amp/critic_skipped_total"] for line in lines] == [0, 1, 1, 1]
    assert ["loss/critic" in line for line in lines] == [True, False, True, True]
    assert all("loss/generator" in line and math.isfinite(line["loss/generator"]) for line in lines)
    # Underflow, slope and gradient norms are watched too; nothing underflows in float32.
    assert [line["gp/zero_fraction"] for line in lines if "gp/zero_fraction" in line] == [0, 0, 0]
    assert all(line["grad_norm/generator"] > 0 for line in lines)
    assert lines[-1]["samples/diversity"] > 0 and lines[-1]["warning/mode_collapse"] in (0, 1)
    # A mean over an interval is over the steps that were made.
    train_here(tmp_path / "mean", *FP32, "train.max_steps=3", "train.log_every=3")
    (mean,) = logged(tmp_path / "mean")
    assert mean["loss/critic"] == pytest.approx((lines[0]["loss/critic"] + lines[2]["loss/critic"]) / 2, rel=1e-6)
    assert mean["amp/critic_skipped"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("words", [FP32, ("variant=sn_mp",)])
def test_bad_data_for_ever_ends_the_run(train_here, tmp_path, spoil, words):
    spoil(range(3, 100))
    folder = tmp_path / "run"
    with pytest.raises(NumericError) as error:
        train_here(folder, *words, "train.max_steps=50", "train.checkpoint_every=2", "train.max_skipped_steps=4")
    assert error.value.exit_code == 5
    # Steps 4 to 7 are bad; the one at 6, saved among them, holds the weights after step 3.
    for named in ("critic", "step 7", "train.max_skipped_steps=4", "step_00000006", "vesselgan check"):
        assert named in str(error.value)
    files = sorted((folder / "checkpoints").glob("*/*.safetensors"))
    assert len(files) >= 8
    for file in files:
        assert all(value.isfinite().all() for value in load_file(file).values()), file
    assert not (folder / "finished.json").exists()


def test_a_loss_scale_at_the_floor_ends(train_here, tmp_path, monkeypatch):
    honest = gan.critic_loss
    # Scores far apart: a gradient beyond half's 65,504 with no scale at all.
    monkeypatch.setattr(gan, "critic_loss", lambda real, fake: 1e9 * honest(real, fake))
    settings = {"fp16": {"enabled": True, "initial_scale_power": 1, "hysteresis": 1, "min_loss_scale": 1}}
    (tmp_path / "ds.json").write_text(json.dumps(settings | {"zero_optimization": {"stage": 1}}))
    words = ["variant=sn_mp", "train.max_steps=50", "train.max_skipped_steps=3", "--deepspeed_config"]
    # Scale 2 at step 1 has a way out; steps 2 to 4, at scale 1, have none.
    with pytest.raises(NumericError, match="loss scale.*step 4.*ds_bf16.json"):
        train_here(tmp_path / "run", *words, str(tmp_path / "ds.json"))


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("batch_size=32", ["train.batch_size=32"]),  # of 24 patches
        ("penalty_reduction=batch", ["variant.penalty_reduction=batch", "train.batch_per_gpu=1"]),  # one norm over all
    ],
)
def test_batches_that_cannot_be_are_refused(train_here, tmp_path, named, words):
    with pytest.raises(UsageError, match=named):
        train_here(tmp_path / "run", *FP32, *words, "train.max_steps=2")
    assert not (tmp_path / "run").exists()


def test_the_rest_is_dropped_and_one_trains(train_here, tmp_path):
    # 24 patches in batches of 23: one batch an epoch, the patch that is left waits for another epoch's order.
    assert train_here(tmp_path / "rest", *FP32, "train.batch_size=23", "train.epochs=2")["steps"] == 2
    assert train_here(tmp_path / "one", "variant=gp", "train.batch_size=1", "train.max_steps=2")["steps"] == 2
    assert [line["amp/critic_skipped"] for line in logged(tmp_path / "one")] == [0, 0]


def test_bad_data_on_one_rank_exits_5(train, tmp_path):
    words = ("variant.width=8", "train.checkpoint_every=2", "train.log_every=1", "train.max_skipped_steps=3")
    result = train(tmp_path / "run", *FP32, *words, ranks=2, script="tests/training/nan_on_rank_one.py")
    record = result.stdout + result.stderr
    assert result.returncode == 5, record
    assert record.count("up to step 5") == 1 and "Traceback" not in record
    assert [line["amp/critic_skipped"] for line in logged(tmp_path / "run")][:4] == [0, 0, 1, 1]
