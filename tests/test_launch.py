"""The entry scripts as a user meets them: help, configuration, errors, exit codes."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[1] / "launch").glob("*.py"))
MODULES = ["make_phantom", "check", "preprocess", "build_shards"]
HELP = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        (runpy.run_path if name.endswith(".py") else runpy.run_module)(name, run_name="__main__")
    except SystemExit as end:
        assert not end.code, (name, end.code)
    assert not {"torch", "hydra"} & sys.modules.keys(), name
"""


def test_help_needs_no_torch_and_makes_nothing(repository, tmp_path):
    names = [*(str(repository / f"launch/{name}.py") for name in SCRIPTS), *(f"data_prep.{name}" for name in MODULES)]
    command = [sys.executable, "-c", HELP, *names]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    for name in (*SCRIPTS, *MODULES):
        assert f"usage: vesselgan {name.replace('_', '-')} " in result.stdout
    assert not any(tmp_path.iterdir())


def test_print_config_prints_and_makes_nothing(repository, tmp_path):
    command = [sys.executable, str(repository / "launch/train_gan.py"), "variant=gp", "train.seed=5", "--print_config"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert (config["variant"]["name"], config["train"]["seed"]) == ("gp", 5)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train_gan", "variant.widht=3"], "variant.width"),
        (["generate"], "run=VALUE"),
        (["plan", "patch_shape=[100,128,64]"], "patch_shape"),
        (["plan", "patch_shape=[16,16,16]", "variant=gp"], "one voxel"),
        (["train_gan", "nonsense"], "key=value"),
        (["segment", "run=none", "out=x"], "none"),
        (["study", "--help", "swep"], "sweep"),
        (["-m", "data_prep.build_shards", "data.prepare.seed=x"], "data.prepare.seed"),
    ],
)
def test_a_users_mistake_is_exit_2(repository, tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    is_module = words[0] == "-m"
    monkeypatch.setattr(sys, "argv", words[1:] if is_module else words)
    with pytest.raises(SystemExit) as end:
        if is_module:
            runpy.run_module(words[1], run_name="__main__")
        else:
            runpy.run_path(str(repository / f"launch/{words[0]}.py"), run_name="__main__")
    record = capsys.readouterr().err
    assert end.value.code == 2 and named in record and len(record.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())
