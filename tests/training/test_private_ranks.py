"""A private run on two ranks: the same account, nearly the same weights, samples that tell it."""

import json
from pathlib import Path

import pytest
import torch

from vesselgan.config.compose import compose
from vesselgan.runtime.checkpoint import read_weights
from vesselgan.synthesis.generate import generate

from .conftest import TrainHere

pytestmark = pytest.mark.soak

SEEDED = ["variant=dpgan", "variant.dp.delta=1e-5", "variant.dp.noise_seed=5", "train.checkpoint_every=1"]
SEEDED += ["variant.width=16"]
MORE = ["train.max_steps=2", "allow_config_change=[train.max_steps]"]


def test_two_ranks_end_where_one_would(train_here: TrainHere, train_on_two: TrainHere, tmp_path: Path) -> None:
    # At width 8 the last group is one channel, whose bias is idle and moves by rounding noise.
    one = train_here(tmp_path / "one", *SEEDED, "train.max_steps=2")
    train_here(tmp_path / "two", *SEEDED, "train.max_steps=1")
    (tmp_path / "two" / "finished.json").unlink()
    two = train_on_two(tmp_path / "two", *SEEDED, *MORE)
    assert two["privacy"] == one["privacy"] and two["ranks"] == 2
    apart = {}
    for network in ("critic", "generator"):
        ours, theirs = (read_weights(tmp_path / name, network)[0] for name in ("one", "two"))
        apart[network] = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in ours])
    # Sums over ranks are added in another order; under the critic's noise that is float32's rounding.
    assert apart["critic"].max() < 1e-8
    # Adam's steps of 1e-4 have no size of their own, so the few weights of the generator whose gradient is near zero
    # may part by more than the others' rounding: by two steps where its sign turns.
    assert (apart["generator"] < 1e-6).float().mean() > 0.95 and apart["generator"].max() < 2.1e-4
    generate(compose("generate", [f"run={tmp_path / 'two'}", "num_patches=2", "runtime.device=cpu"]))
    record = json.loads((tmp_path / "two" / "synthetic" / "generation.json").read_text())
    assert record["privacy"]["epsilon"] == pytest.approx(two["privacy"]["epsilon"])
    assert record["privacy"]["unit"] == "patch"


def test_two_stopped_ranks_end_with_the_same_bytes(train_on_two: TrainHere, tmp_path: Path) -> None:
    for name, *sessions in (("whole", MORE), ("run", ["train.max_steps=1"], MORE)):
        for session in sessions:
            assert train_on_two(tmp_path / name, *SEEDED, "data.augment=true", *session)
    assert len((tmp_path / "run" / "sessions.jsonl").read_text().splitlines()) == 2
    whole, run = (tmp_path / name / "checkpoints" / "step_00000002" for name in ("whole", "run"))
    tensors = sorted(path.name for path in whole.glob("*.safetensors"))
    assert {"critic.safetensors", "critic.optimizer.safetensors", "generator.safetensors"} <= set(tensors)
    assert all((whole / name).read_bytes() == (run / name).read_bytes() for name in tensors)
    states = [json.loads((path / "state.json").read_text()) for path in (whole, run)]
    assert states[0]["engines"] == states[1]["engines"]
    for key in ("privacy", "position", "meter"):
        assert states[0]["state"][key] == states[1]["state"][key], key
    assert states[0]["state"]["privacy"]["steps"] == 10
    assert (tmp_path / "whole" / "releases.json").read_text() == (tmp_path / "run" / "releases.json").read_text()
