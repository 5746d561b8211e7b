"""`vesselgan COMMAND`: which commands there are, and whose cohort they are about."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vesselgan.cli import main as cli
from vesselgan.config import compose, overrides
from vesselgan.formats.manifest import write_manifest
from vesselgan.formats.predictions import Predictions
from vesselgan.formats.shard_file import ShardInfo


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations with which commands are called, in place of what they do."""
    configs: list[Any] = []
    for name in cli.STAGES:
        monkeypatch.setitem(cli.STAGES, name, lambda command: configs.append(command.config))
    return configs


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GAN's run on a cohort of its own, with a synthetic set."""
    monkeypatch.chdir(tmp_path)
    settings = ["data=pairs", "data.name=mine"]
    run = tmp_path / "work/runs/gan"
    (run / "synthetic").mkdir(parents=True)
    (run / "config.yaml").write_text(compose.to_yaml(compose.compose("train_gan", settings)))
    write_set(run / "synthetic", "gan")
    return run


def write_set(folder: Path, run: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    geometry = {"patch_shape": (16, 16, 16), "spacing_mm": (1.0, 1.0, 1.0), "percentiles": None, "subjects": {}}
    shards = [ShardInfo("a.h5", 1, 1, "0" * 64)]
    write_manifest(folder, shards=shards, origin="synthetic", extra={"run": run}, **geometry)


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["vesselgan", *words])
    cli.main()


def test_every_command_is_listed_with_a_sentence():
    assert set(cli.COMMANDS.values()) == set(overrides.COMMANDS)
    text = cli.overview()
    assert all(f"\n  {name}\n      " in text for name in cli.COMMANDS)


def test_an_unknown_command_is_exit_2(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, "trian-gan")
    assert end.value.code == 2 and "`train-gan`" in capsys.readouterr().err


def test_the_launchers_option_may_stand_first(called, monkeypatch):
    call(monkeypatch, "--local_rank=1", "train-gan", "train.seed=5")
    assert called[0].train.seed == 5


@pytest.mark.parametrize(
    "words",
    [
        ["train-unet", "data.source=synthetic", "synthetic=work/runs/gan/synthetic"],
        ["train-unet", "data.source=synthetic", "synthetic=moved"],
        ["report", "runs=[work/runs/gan]"],
        ["study", "runs=[work/runs/gan]"],
        ["audit", "run=work/runs/gan", "out=b"],
        ["audit", "synthetic=[work/runs/gan/synthetic]", "out=b"],
        ["audit", "synthetic=[heads]", "out=b"],
        ["release", "run=work/runs/gan", "name=a", "audit=b"],
        ["evaluate", "evaluate=image", "image.synthetic=work/runs/gan/synthetic", "name=a", "out=b"],
        ["train-gan", "--run_dir", "work/runs/gan"],
    ],
    ids=lambda words: f"{words[0]} {words[1]}",
)
def test_the_cohort_is_that_of_what_is_named(words, run_dir, called, monkeypatch, capsys):
    write_set(Path("moved"), "gan")
    Path("heads").mkdir()
    Path("heads/generation.json").write_text('{"run": "gan"}')
    call(monkeypatch, *words)
    data = called[0].data
    assert (data.name, data.cohort_dir) == ("mine", "work/mine")
    assert "cohort mine (work/mine), as" in capsys.readouterr().out


@pytest.mark.parametrize("typed", ["data=phantom", "data.name=other", "data.cohort_dir=elsewhere", "preset=other"])
def test_a_typed_cohort_is_kept(typed, run_dir, called, monkeypatch):
    call(monkeypatch, "report", "runs=[work/runs/gan]", typed)
    assert called[0].data == compose.compose("report", ["runs=[work/runs/gan]", typed]).data


def test_predictions_record_the_cohort_segmented(phantom_cohort_json, called, monkeypatch):
    out = Predictions("predictions", cohort_dir="work/mine")
    out.open({"run": "unet"})
    call(monkeypatch, "evaluate", "predictions=predictions", "name=a", "out=b")
    assert (called[0].data.name, called[0].data.cohort_dir) == ("mine", "work/mine")


@pytest.fixture
def phantom_cohort_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """work/mine/cohort.json, of no subjects."""
    from vesselgan.formats.cohort import Cohort

    monkeypatch.chdir(tmp_path)
    Path("work/mine").mkdir(parents=True)
    Cohort("mine", (0, 100), {}).write("work/mine")


def test_results_of_one_cohort_head_the_report(phantom_cohort_json, called, monkeypatch):
    from vesselgan.formats.results import write_result

    Path("work/results").mkdir()
    write_result("work/results/segmentation.json", {"job": "segmentation", "name": "a", "cohort": "mine"})
    call(monkeypatch, "report")
    assert called[0].data.name == "mine"
    write_result("work/results/b.json", {"job": "segmentation", "name": "b", "cohort": "phantom"})
    call(monkeypatch, "report")
    assert called[1].data.name == "phantom"


def test_python_m_vesselgan_lists_the_commands(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "vesselgan"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "build-shards" in result.stdout


@pytest.mark.parametrize("name", cli.STAGES)
def test_the_examples_of_help_compose(name):
    text = (cli.STAGES[name].__doc__ or "").replace("\\\n", " ")
    examples = re.findall(r"(?:vesselgan|--module vesselgan) ([a-z-]+) ?(.*)", text)
    examples = [words for command, words in examples if command == name.replace("_", "-")]
    assert examples
    for words in examples:
        typed = shlex.split(words, comments=True)
        overrides = [f"run={word}" if name == "status" else word for word in typed if not word.startswith("--")]
        compose.compose(name, [word for word in overrides if "=" in word])
