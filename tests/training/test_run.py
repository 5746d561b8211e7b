"""The real entry script, on one rank and through the real launcher on two."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FP32 = ("variant.precision=fp32", "train.log_every=1")


def weights(run_dir: Path, step: int, player: str) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"step_{step:08d}" / f"{player}.safetensors")


def logged(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("variant", ["gp", "sn"])
def test_two_ranks_equal_one_rank_with_the_joined_batch(train, tmp_path, variant):
    words = (f"variant={variant}", "train.max_steps=5", "train.checkpoint_every=1", "train.keep_last=5", *FP32)
    one, two = train(tmp_path / "one", *words), train(tmp_path / "two", *words, ranks=2)
    assert one.returncode == 0 and two.returncode == 0, one.stderr + two.stdout + two.stderr
    # After one step Adam's second moment is a tenth of the squared gradient. Sums over ranks are added in another
    # order: measured, 2e-6 of a tensor's largest gradient for SN, 6e-5 for GP, whose InstanceNorm sees a nearly flat
    # fake at the start.
    for player in ("critic.optimizer", "generator.optimizer"):
        first, second = (weights(tmp_path / run, 1, player) for run in ("one", "two"))
        for key in (key for key in first if key.endswith("/exp_avg_sq")):
            sizes = first[key].sqrt(), second[key].sqrt()
            assert (sizes[0] - sizes[1]).abs().max() <= 2e-4 * sizes[0].max(), key
    # Adam then divides each gradient by its own size, so weights whose gradients nearly cancel take steps of nearly
    # full size (4e-4) either way: what rounding left grows from step to step, most where InstanceNorm sees the four
    # voxels that this small patch leaves. The mean movement of 5 steps is 1e-3; a rank that trained alone, or BatchNorm
    # over half the batch, is off by as much.
    for player in ("critic", "generator"):
        first, second = (weights(tmp_path / run, 5, player) for run in ("one", "two"))
        for key in (key for key in first if first[key].is_floating_point() and "running" not in key):
            assert (first[key] - second[key]).square().mean().sqrt() < 1e-4, key
    # GP's penalty is in the thousands at first and multiplies what rounding left: 0.12 % at step 5.
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        for name in ("loss/critic", "loss/generator", "loss/wasserstein", "loss/gradient_penalty"):
            within = 1e-4 if a["step"] == 1 else 1e-2
            assert abs(a[name] - b[name]) < within * max(1.0, abs(a[name])), (a["step"], name)


def test_resume_at_five_equals_ten_straight_to_the_bit(train, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    words = ("variant=sn", "train.max_steps=10", "train.checkpoint_every=5", "train.ema_decay=0.9", *FP32)
    result = train(straight, *words)
    assert result.returncode == 0, result.stderr
    # As a kill after step 5's checkpoint would leave it, with lines beyond it in the log.
    shutil.copytree(straight, broken)
    shutil.rmtree(broken / "checkpoints" / "step_00000010")
    (broken / "finished.json").unlink()
    result = train(broken, *words)
    assert result.returncode == 0 and "resumed at step 5" in result.stdout, result.stdout + result.stderr
    for file in sorted((straight / "checkpoints" / "step_00000010").glob("*.safetensors")):
        assert file.read_bytes() == (broken / "checkpoints" / "step_00000010" / file.name).read_bytes(), file.name
    assert [line["step"] for line in logged(broken)] == list(range(1, 11))
    losses = [[line["loss/critic"] for line in logged(run)] for run in (straight, broken)]
    assert losses[0] == losses[1]

    again = train(straight, *words)
    assert again.returncode == 0 and "finished already" in again.stdout

    other = train(straight, *words, "train.seed=1")
    assert other.returncode == 4 and "train.seed: 990 -> 1" in other.stderr


def test_fp16_trains_through_the_launcher_where_deepspeed_accepts_it(train, tmp_path):
    # The one thing replaced is DeepSpeed's question whether this processor has half instructions.
    result = train(
        tmp_path / "half",
        "variant=sn_mp",
        "train.max_steps=3",
        "train.log_every=1",
        "--deepspeed_config",
        "ds_fp16.json",
        ranks=2,
        script="tests/training/half_on_any_cpu.py",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    steps = logged(tmp_path / "half")
    assert [line["amp/critic_loss_scale"] for line in steps] == [4096.0] * 3
    assert all(line["amp/critic_skipped"] == 0 and line["amp/generator_skipped"] == 0 for line in steps)
    state = json.loads((tmp_path / "half" / "checkpoints" / "step_00000003" / "state.json").read_text())
    assert state["engines"]["critic"]["scaler"]["cur_scale"] == 4096.0
    assert weights(tmp_path / "half", 3, "generator")["start.weight"].dtype == torch.float32


def test_n_critic_steps_the_critic_that_often_on_fresh_batches(train, tmp_path):
    result = train(tmp_path / "many", "variant=gp", "variant.n_critic=3", "train.max_steps=2", *FP32)
    assert result.returncode == 0, result.stderr
    state = json.loads((tmp_path / "many" / "checkpoints" / "step_00000002" / "state.json").read_text())
    assert state["engines"]["critic"]["optimizer_step"] == 6
    assert state["engines"]["generator"]["optimizer_step"] == 2


def test_an_accelerator_without_fp16_is_told_the_whole_command_that_would_run(train, tmp_path):
    result = train(tmp_path / "none", "variant=sn_mp", script="tests/training/half_on_no_cpu.py")
    assert result.returncode == 6
    first, *commands = result.stderr.strip().splitlines()
    assert first.startswith("error: ") and first.endswith("what would run here:")
    assert [command.split(" variant=sn_mp ")[1] for command in commands] == [
        f"--deepspeed_config ds_{precision}.json variant.precision={precision}" for precision in ("bf16", "fp32")
    ]
    assert not (tmp_path / "none").exists()


def test_missing_shards_are_one_line_with_the_command_that_makes_them(train, tmp_path):
    result = train(tmp_path / "none", "variant=sn", f"work_dir={tmp_path / 'empty'}")
    assert result.returncode == 3
    assert "data_prep.build_shards" in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_a_stop_request_saves_at_the_next_step_and_the_same_command_goes_on_to_the_same_bytes(train, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    words = ("variant=gp", "train.max_steps=6", "train.log_every=4", "variant.precision=fp32")
    assert train(straight, *words).returncode == 0
    # So little time that it is nearly up after the first step.
    result = train(stopped, *words, "train.max_minutes=0.00001")
    assert result.returncode == 0 and "nearly up" in result.stdout, result.stdout + result.stderr
    assert json.loads((stopped / "requeue").read_text())["step"] < 6
    assert not (stopped / "finished.json").exists()
    result = train(stopped, *words)
    assert result.returncode == 0 and "resumed at step" in result.stdout, result.stdout + result.stderr
    assert not (stopped / "requeue").exists()
    for file in sorted((straight / "checkpoints" / "step_00000006").glob("*.safetensors")):
        assert file.read_bytes() == (stopped / "checkpoints" / "step_00000006" / file.name).read_bytes(), file.name
    # The mean over steps 1 to 4 is the same although the run was stopped among them.
    assert [line["loss/critic"] for line in logged(straight)] == [line["loss/critic"] for line in logged(stopped)]
