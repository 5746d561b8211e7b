"""A flow trains, resumes and samples as a GAN does."""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vesselgan.config.compose import compose
from vesselgan.core.errors import DataError, UsageError
from vesselgan.data.positions import places_of
from vesselgan.formats.shards import ShardSet, write_shard
from vesselgan.models.variants import build_networks, init_networks
from vesselgan.runtime.noise import NoiseSampler
from vesselgan.synthesis.sampler import load_generator
from vesselgan.training.gan import critic_step, generator_step

from ..conftest import edit_json
from .conftest import PATCH_SHAPE, StillEngine

FOUR = ("train.max_steps=4", "train.checkpoint_every=2", "train.keep_last=9")
FLOW = ("variant=flow", "variant.flow.num_steps=2", *FOUR)


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / f"checkpoints/step_{step:08d}/generator.safetensors")


def logged(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


PRIVATE = ("variant.dp.noise_seed=5", "variant.dp.delta=1e-5")


@pytest.mark.parametrize(
    ("variant", "precision", "own"),
    [
        ("flow", "fp32", ()),
        ("flow_mp", "fp16", ()),
        ("dp_flow", "fp32", PRIVATE),
        ("dp_flow_label", "fp32", PRIVATE),
        ("flow_label", "fp32", ()),
        ("gan_label", "fp32", ()),
        ("gan_label", "fp16", ("variant.precision=fp16",)),
    ],
)
def test_a_broken_run_resumes_to_the_same_bytes(train_here, tmp_path, variant, precision, own):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    words = (*FOUR, f"variant={variant}", "--deepspeed_config", f"ds_{precision}.json", *own)
    words += ("variant.flow.num_steps=2",) if "flow" in variant else ()
    train_here(straight, *words)
    shutil.copytree(straight, broken)
    shutil.rmtree(broken / "checkpoints/step_00000004")
    (broken / "finished.json").unlink()
    train_here(broken, *words)
    files = sorted((straight / "checkpoints/step_00000004").glob("*.safetensors"))
    assert {"generator.optimizer.safetensors", "generator.safetensors"} <= {file.name for file in files}
    for file in files:
        assert file.read_bytes() == (broken / "checkpoints/step_00000004" / file.name).read_bytes(), file.name
    loss = "loss/generator" if variant.startswith("gan") else "loss/flow"
    assert [row[loss] for row in logged(broken)] == [row[loss] for row in logged(straight)]


@pytest.mark.parametrize("variant", ["flow_label", "gan_label"])
def test_volumes_too_small_for_heads_are_named_before_the_first_step(train_here, tmp_path, capsys, variant):
    """Such a run makes whole heads, and never a patch."""
    train_here(tmp_path / "run", f"variant={variant}", "--deepspeed_config", "ds_fp32.json", "train.max_steps=1")
    lines = (tmp_path / "run/log.txt").read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines) if "warning: no patches can be made" in line]
    assert "volumes=N shape=[152,192,60]" in lines[number] and number < len(lines) - 2
    with pytest.raises(UsageError, match="volumes=N shape="):
        load_generator(tmp_path / "run", device="cpu").sample(1, 5)


@pytest.mark.soak
@pytest.mark.parametrize(("variant", "loss"), [("flow", "loss/flow"), ("gan_label", "loss/generator")])
def test_two_ranks_train_what_one_does(train_here, train_on_two, tmp_path, variant, loss):
    words = (*FOUR, f"variant={variant}", "train.batch_size=4", "--deepspeed_config", "ds_fp32.json")
    assert train_here(tmp_path / "one", *words) and train_on_two(tmp_path / "two", *words)
    one, two = (weights(tmp_path / name, 4) for name in ("one", "two"))
    for key in one:
        # Sums over ranks are added in another order, and Adam divides each gradient by its own size (rate 2e-3).
        assert (one[key] - two[key]).square().mean().sqrt() < 2e-4, key
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        # As above; a generator's loss is a mean score, which may lie near 0.
        assert a[loss] == pytest.approx(b[loss], rel=1e-3, abs=1e-3)


def test_micro_batches_give_the_same_update(train_here, tmp_path):
    words = (*FLOW, "train.max_steps=1")
    train_here(tmp_path / "whole", *words)
    train_here(tmp_path / "parts", *words, "train.batch_per_gpu=1")
    whole, parts = (logged(tmp_path / name)[0] for name in ("whole", "parts"))
    for name in ("loss/flow", "loss/flow_label", "grad_norm/generator"):
        assert whole[name] == pytest.approx(parts[name], rel=1e-5)


def test_samples_take_the_variants_weights_and_threshold(train_here, work_dir, tmp_path):
    from vesselgan.synthesis.generate import generate

    train_here(tmp_path / "run", *FLOW, "variant.flow.num_steps=8")
    out = generate(compose("generate", [f"run={tmp_path / 'run'}", "num_patches=3", "batch_size=2"]))
    trained = load_generator(tmp_path / "run", device="cpu")
    assert (trained.weights, trained.label_threshold, out.label_threshold) == ("ema", 0.5, 0.5)
    for i, record in enumerate(trained.sample(3, 990, batch_size=2)):
        assert (record.image_XYZ == out.image(i)).all() and (record.label_XYZ == out.label(i)).all()
    assert ShardSet(out.folder).patch_shape == ShardSet(work_dir / "phantom/shards/gan/train").patch_shape


def test_a_private_flow_spends_and_hides_places(train_here, work_dir, tmp_path):
    """Where patches were cut is the patients'; samples come from everywhere alike."""
    facts = train_here(tmp_path / "run", "variant=dp_flow", "train.max_steps=3", *PRIVATE)
    assert facts["privacy"]["steps"] == 3
    kept = weights(tmp_path / "run", 3)
    assert (kept["position_counts"] == 1).all()
    extents_N3 = places_of(ShardSet(work_dir / "phantom/shards/gan/train")).extent_N3
    assert torch.equal(kept["patch_extent"], extents_N3.mean(0))  # samples need a head's size
    assert all(row["dp/epsilon"] > 0 for row in logged(tmp_path / "run"))


def test_a_flow_without_places_asks_for_none(train_here, work_dir, tmp_path):
    """Of a set that does not say how large the volumes are."""
    shutil.copytree(work_dir / "phantom", tmp_path / "phantom")
    edit_json(
        tmp_path / "phantom/shards/gan/train/manifest.json",
        lambda manifest: [subject.pop("shape") for subject in manifest["subjects"].values()],
    )
    words = ("variant=flow", "train.max_steps=1", f"data.cohort_dir={tmp_path / 'phantom'}")
    with pytest.raises(DataError, match="shape"):
        train_here(tmp_path / "placed", *words)
    assert train_here(tmp_path / "run", *words, "variant.flow.position=false")["steps"] == 1


def test_learning_rate_falls_to_its_share(train_here, tmp_path):
    """With a share of 0 the last step's rate is a fourth of the first's: Adam's first step moves by the rate."""
    words = (
        *FLOW,
        "variant.muon_learning_rate=null",
        "variant.final_learning_rate=0",
        "variant.betas=[0.0,0.5]",
        "train.checkpoint_every=1",
    )
    train_here(tmp_path / "run", *words)
    steps = [weights(tmp_path / "run", step)["last.bias"] for step in (1, 2, 3, 4)]
    # Adam without momentum moves by at most rate * sqrt((1 - b^t) / (1 - b)), b = 0.5.
    for t, (before, after) in enumerate(zip(steps, steps[1:], strict=False), 2):
        rate = 2e-3 * (1 - (t - 1) / 4)
        assert (after - before).abs().max() <= rate * ((1 - 0.5**t) / 0.5) ** 0.5 * 1.001
    assert (steps[3] - steps[2]).abs().max() < 0.5e-3 * 1.42


def test_a_given_label_has_no_loss(train_here, tmp_path):
    """A network that has learned nothing predicts 0: the loss is the mean square of the images alone."""
    train_here(tmp_path / "run", *FLOW, "variant=flow_label", "train.image_every=4")
    rows = logged(tmp_path / "run")
    assert all(row["loss/flow"] == row["loss/flow_image"] and "loss/flow_label" not in row for row in rows)
    assert rows[0]["loss/flow"] > 0.05 and rows[-1]["samples/diversity"] > 0
    with pytest.raises(UsageError, match="volumes"):
        load_generator(tmp_path / "run", device="cpu").sample(1, 0)


def test_a_tissue_map_must_be_there(train_here, work_dir, tmp_path):
    shutil.copytree(work_dir / "phantom", tmp_path / "bare")
    folder = tmp_path / "bare/shards/gan/train"
    records = [replace(record, tissue_XYZ=None) for record in ShardSet(folder)]
    info = write_shard(folder / "shard_0000.h5", records, patch_shape=PATCH_SHAPE, origin="real")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"] = [asdict(info)]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    words = ("variant=flow_label", f"data.cohort_dir={tmp_path / 'bare'}")
    with pytest.raises(DataError, match="condition=label"):
        train_here(tmp_path / "run", *FLOW, *words)
    train_here(tmp_path / "run", *FLOW, *words, "variant.condition=label", "train.max_steps=1")


@pytest.mark.parametrize("words", [("variant=sn",), ("variant=dpgan",)])
def test_what_takes_no_condition_is_refused(words):
    with pytest.raises(UsageError, match="condition"):
        compose("train_gan", [*words, "variant.condition=label"])


def test_a_gans_fakes_have_the_batchs_labels():
    """The critic sees a fake image with the real patch's label and tissue map, in their own places."""
    variant = compose("train_gan", ["variant=gan_label", "variant.width=8"]).variant
    networks = build_networks(variant, (16, 16, 16))
    init_networks(networks, 0)
    seen, critic = [], networks["critic"]
    critic.register_forward_pre_hook(lambda _, patches: seen.append(patches[0].detach()))
    engines = {name: StillEngine(name, network) for name, network in networks.items()}
    real = torch.cat([torch.rand(2, 1, 16, 16, 16), torch.randint(0, 2, (2, 2, 16, 16, 16))], 1)
    noise = NoiseSampler(0, 2, networks["generator"].latent_size)
    batch = real, torch.zeros(2, 3)
    metrics = critic_step(*engines.values(), batch, noise, 0, variant)
    generator_step(*engines.values(), noise, 0, batch=batch)
    assert torch.equal(seen[0], real) and len(seen) == 3
    assert all(torch.equal(fake[:, 1:], real[:, 1:]) and not torch.equal(fake[:, :1], real[:, :1]) for fake in seen[1:])
    # With its first weights the critic says of no voxel what it is: nearly log(5) for each of the five classes.
    assert metrics["loss/critic"] == metrics["loss/critic_real"] + metrics["loss/critic_fake"]
    assert metrics["loss/critic"].item() == pytest.approx(2 * math.log(5), rel=0.1)
    assert not {"loss/gradient_penalty", "loss/wasserstein"} & set(metrics)


@pytest.mark.parametrize("word", ["variant.n_critic=5", "variant.critic_norm=spectral", "data.augment=true"])
def test_what_a_flow_cannot_use_is_refused(train_here, tmp_path, word):
    with pytest.raises(UsageError, match=word.partition("=")[0].split(".")[1]):
        train_here(tmp_path / "run", *FLOW, word)
