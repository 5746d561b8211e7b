"""The entry scripts as a user meets them: help, configuration, errors, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[1] / "launch").glob("*.py"))
MODULES = ["make_phantom", "check", "preprocess", "build_shards"]


def call(repository: Path, words: list[str], cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, *words]
    if words[0] != "-m":
        command[1] = str(repository / "launch" / f"{words[0]}.py")
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("words", [[name] for name in SCRIPTS] + [["-m", f"data_prep.{name}"] for name in MODULES])
def test_help_shows_an_example_without_loading_torch(repository, tmp_path, words):
    start = (
        f"run_module({words[-1]!r}"
        if words[0] == "-m"
        else f"run_path({str(repository / 'launch' / words[0])!r} + '.py'"
    )
    program = (
        "import runpy, sys\n"
        "try:\n"
        f"    runpy.{start}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print('TORCH' if 'torch' in sys.modules else 'LIGHT')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("LIGHT\n")
    name = words[-1].rsplit(".")[-1]
    assert f"{name}.py" in result.stdout or f"data_prep.{name}" in result.stdout
    assert not any(tmp_path.iterdir())


def test_print_config_prints_what_would_run_and_makes_nothing(repository, tmp_path):
    result = call(repository, ["train_gan", "variant=gp", "train.seed=5", "--print_config"], tmp_path)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert (config["variant"]["name"], config["train"]["seed"]) == ("gp", 5)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train_gan", "variant.widht=3"], "variant.width"),
        (["generate"], "run=VALUE"),
        (["plan", "patch_shape=[100,128,64]"], "nearest that work"),
        (["plan", "patch_shape=[16,16,16]", "variant=gp"], "one voxel"),
        (["train_gan", "nonsense"], "key=value"),
        (["segment", "run=none", "out=x"], "none"),
        (["-m", "data_prep.build_shards", "data.prepare.seed=x"], "data.prepare.seed"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_two(repository, tmp_path, words, told):
    result = call(repository, words, tmp_path)
    assert result.returncode == 2, result.stderr
    assert told in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())
