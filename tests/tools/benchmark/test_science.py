"""What the science part trains: the variant as it was set, in its precision, for steps that fill the minutes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vesselgan.config import compose
from vesselgan.config.overrides import groups
from vesselgan.config.schema import Benchmark
from vesselgan.core.errors import UsageError
from vesselgan.tools.benchmark import acceptance, science
from vesselgan.tools.benchmark.pipeline import Pipeline

STEP_S = 0.25


def benchmark(*words: str) -> Benchmark:
    return compose.compose("benchmark", ["target=acceptance", "parts=[science]", "minutes=2", *words])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run directory -> configuration of each train_gan that would have been started; Dice is made up."""
    configs: dict[str, Any] = {}

    def launch(pipeline: Pipeline, name: str, *words: str) -> float:
        if name == "train_gan":
            config = compose.parse(name, None, list(words)).config
            configs[Path(config.run_dir).name] = config
        return 1.0

    def seconds_of_step(pipeline: Pipeline, run_dir: Path, *settings: str) -> float:
        pipeline.train_gan(run_dir, 30, *settings)
        return STEP_S

    monkeypatch.setattr(Pipeline, "launch", launch)
    monkeypatch.setattr(Pipeline, "seconds_of_step", seconds_of_step)
    monkeypatch.setattr(Pipeline, "make_phantom", lambda *words: None)
    monkeypatch.setattr(Pipeline, "dice", lambda *words: {"all": 0.5})
    return configs


def on(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(science.distributed, "choose_device", lambda wanted, rank: torch.device(device))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_settings_beside_the_variant_are_trained(trained, monkeypatch, device):
    on(device, monkeypatch)
    science.dice_of_synthetic(benchmark("variant=flow_label", "variant.width=16", "variant.flow.num_steps=4"))
    run = trained["run-flow_label"]
    assert (run.variant.name, run.variant.width, run.variant.flow.num_steps) == ("flow_label", 16, 4)
    assert trained.keys() == ({"run-flow_label"} if device == "cpu" else {"probe-flow_label", "run-flow_label"})
    assert run.train.max_steps == (1 if device == "cpu" else 480)  # 2 minutes of 0.25 s each


@pytest.mark.parametrize("variant", groups()["variant"])
def test_every_variant_trains_as_it_stands(trained, monkeypatch, variant):
    on("cuda", monkeypatch)
    config = benchmark(f"variant={variant}")
    facts = science.dice_of_synthetic(config)
    names = [variant] if config.variant.flow is not None else [variant, "flow_label"]
    assert facts["steps"] == dict.fromkeys(names, 480)
    for name in names:
        run, probe = trained[f"run-{name}"], trained[f"probe-{name}"]
        assert run.variant == probe.variant == compose.compose("train_gan", [f"variant={name}"]).variant
        assert (run.train.max_steps, run.train.max_minutes) == (480, None)


def test_the_demos_preset_stands_below_settings(trained, monkeypatch):
    on("cpu", monkeypatch)
    science.dice_of_synthetic(benchmark("variant=sn_mp", "variant.n_critic=2", "variant.precision=bf16"))
    variant = trained["run-sn_mp"].variant
    assert (variant.n_critic, variant.precision, variant.width) == (2, "bf16", 96)


def test_a_group_taken_away_stays_away(trained, monkeypatch):
    on("cpu", monkeypatch)
    science.dice_of_synthetic(benchmark("variant=dpgan", "variant.dp=null"))
    assert trained["run-dpgan"].variant.dp is None


def test_an_unknown_name_fails_before_any_command(trained, monkeypatch):
    on("cpu", monkeypatch)
    with pytest.raises(UsageError, match="variant=mine"):
        science.dice_of_synthetic(benchmark("variant=sn", "variant.name=mine"))
    assert not trained


@pytest.mark.parametrize(
    ("variant", "group", "device", "precision"),
    [
        ("sn", "science", "cuda", "fp16"),
        ("flow", "science", "cuda", "fp32"),
        ("flow_mp", "science", "cuda", "fp16"),
        ("flow_mp", "science", "cpu", "bf16"),
        ("dpgan", "science", "cuda", "fp32"),
        ("dpgan", "speed", "cuda", "fp16"),
    ],
)
def test_science_trains_in_a_precision_that_the_variant_has(variant, group, device, precision):
    config = compose.compose("benchmark", ["target=acceptance", f"variant={variant}"])
    assert acceptance.precision_of(group, torch.device(device), config.variant) == precision
