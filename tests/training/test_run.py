"""The real entry script, on one rank and through the real launcher on two."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import pytest
import torch
from safetensors.torch import load_file

from vesselgan.config.compose import compose
from vesselgan.core.errors import DataError
from vesselgan.formats.shards import ShardSet
from vesselgan.synthesis.generate import generate

FP32 = ("variant.precision=fp32", "train.log_every=1")


def weights(run_dir: Path, step: int, network: str) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"step_{step:08d}" / f"{network}.safetensors")


def logged(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("variant", [pytest.param("gp", marks=pytest.mark.soak), "sn"])
def test_two_ranks_equal_the_joined_batch(train_here, train_on_two, tmp_path, variant):
    words = (f"variant={variant}", "train.max_steps=5", "train.checkpoint_every=1", "train.keep_last=5", *FP32)
    words += ("variant.width=16", "train.batch_size=4")
    assert train_here(tmp_path / "one", *words)["ranks"] == 1 and train_on_two(tmp_path / "two", *words)["ranks"] == 2
    # After one step Adam's second moment is a tenth of the squared gradient. Sums over ranks are added in another
    # order: measured, 2e-6 of a tensor's largest gradient for SN, 6e-5 for GP, whose InstanceNorm sees a nearly flat
    # fake at the start.
    for network in ("critic.optimizer", "generator.optimizer"):
        first, second = (weights(tmp_path / run, 1, network) for run in ("one", "two"))
        for key in (key for key in first if key.endswith("/exp_avg_sq")):
            sizes = first[key].sqrt(), second[key].sqrt()
            assert (sizes[0] - sizes[1]).abs().max() <= 2e-4 * sizes[0].max(), key
    # Adam then divides each gradient by its own size, so weights whose gradients nearly cancel take steps of nearly
    # full size (4e-4) either way: what rounding left grows from step to step, most where InstanceNorm sees the four
    # voxels that this small patch leaves. The mean movement of 5 steps is 1e-3; a rank that trained alone, or BatchNorm
    # over half the batch, is off by as much.
    for network in ("critic", "generator"):
        first, second = (weights(tmp_path / run, 5, network) for run in ("one", "two"))
        for key in (key for key in first if first[key].is_floating_point() and "running" not in key):
            assert (first[key] - second[key]).square().mean().sqrt() < 1e-4, key
    # GP's penalty is in the thousands at first and multiplies what rounding left: 0.12 % at step 5.
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        for name in ("loss/critic", "loss/generator", "loss/wasserstein", "loss/gradient_penalty"):
            within = 1e-4 if a["step"] == 1 else 1e-2
            assert abs(a[name] - b[name]) < within * max(1.0, abs(a[name])), (a["step"], name)


@pytest.mark.soak
def test_fp16_trains_through_the_launcher(train, tmp_path):
    words = ["variant=sn_mp", "train.max_steps=3", "train.log_every=1", "--deepspeed_config", "ds_fp16.json"]
    result = train(tmp_path / "half", *words, ranks=2)
    assert result.returncode == 0, result.stdout + result.stderr
    steps = logged(tmp_path / "half")
    assert [line["amp/critic_loss_scale"] for line in steps] == [4096.0] * 3
    assert all(line["amp/critic_skipped"] == 0 and line["amp/generator_skipped"] == 0 for line in steps)
    state = json.loads((tmp_path / "half" / "checkpoints" / "step_00000003" / "state.json").read_text())
    assert state["engines"]["critic"]["scaler"]["cur_scale"] == 4096.0
    assert weights(tmp_path / "half", 3, "generator")["start.weight"].dtype == torch.float32


def test_n_critic_steps_the_critic_that_often(train_here, tmp_path):
    train_here(tmp_path / "many", "variant=gp", "variant.n_critic=3", "train.max_steps=2", "variant.precision=fp32")
    state = json.loads((tmp_path / "many" / "checkpoints" / "step_00000002" / "state.json").read_text())
    assert state["engines"]["critic"]["optimizer_step"] == 6
    assert state["engines"]["generator"]["optimizer_step"] == 2


def test_emulated_fp16_names_a_faster_command(train_here, tmp_path, monkeypatch):
    monkeypatch.setattr("vesselgan.models.blocks._cpu_has_bfloat16", lambda: False)
    train_here(tmp_path / "run", "variant=sn_mp", "train.max_steps=2")
    notices = [line for line in (tmp_path / "run/log.txt").read_text().splitlines() if "fp16 is emulated" in line]
    assert len(notices) == 1 and "--deepspeed_config ds_fp32.json variant.precision=fp32" in notices[0]
    assert weights(tmp_path / "run", 2, "critic")


def test_missing_shards_name_the_command(train_here, tmp_path):
    with pytest.raises(DataError, match="vesselgan build-shards") as raised:
        train_here(tmp_path / "none", "variant=sn", f"work_dir={tmp_path / 'empty'}")
    assert raised.value.exit_code == 3


def test_nothing_of_a_subject_leaves_with_samples(train_here, work_dir, tmp_path):
    run = tmp_path / "run"
    train_here(run, "variant=sn", "train.max_steps=1")
    synthetic = generate(compose("generate", [f"run={run}", "num_patches=1", "batch_size=1", "nifti=true"]))
    training = ShardSet(work_dir / "phantom" / "shards" / "gan" / "train").subjects
    origin = next(iter(training.values()))["affine"][0][3]
    secrets = [*training, str(origin), str(work_dir)]
    paths = [path for folder in (run / "checkpoints", synthetic.folder) for path in folder.rglob("*") if path.is_file()]
    contents = {
        path: gzip.decompress(data) if path.suffix == ".gz" else data for path in paths if (data := path.read_bytes())
    }
    assert not [(path, secret) for path, data in contents.items() for secret in secrets if secret.encode() in data]
    affines = [nib.load(path).affine.tolist() for path in paths if path.suffix == ".gz"]
    assert affines == 2 * [[[1, 0, 0, -15.5], [0, 1, 0, -15.5], [0, 0, 1.5, -11.25], [0, 0, 0, 1]]]


def test_generation_says_how_far_samples_are(train_here, tmp_path, capfd):
    train_here(tmp_path / "run", "variant=sn", "train.max_steps=1")
    capfd.readouterr()
    # A generator of one step scores nothing above 0.99. The real bars fill 3 x 3 of 32 x 16 voxels.
    generate(compose("generate", [f"run={tmp_path / 'run'}", "num_patches=2", "label_threshold=0.99"]))
    screen = "".join(capfd.readouterr())
    assert "2 of 2 labels empty, vessel fraction 0," in screen
    assert "training set: 0 of 24 labels empty, vessel fraction 0.0176" in screen
    assert "vessel fraction 0 against 0.0176" in screen
