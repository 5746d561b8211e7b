"""What is installed is what the project needs, and `make` says in one line what a machine lacks."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

SHIPPED = ("vesselgan", "data_prep")


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel_names(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """File names inside a wheel built from a copy of what is tracked or new, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns(".git", ".venv", "work", "build", "*.egg-info", "__pycache__", ".*_cache", "tests")
    shutil.copytree(repository, source, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    done = subprocess.run(
        [*command, "-w", str(folder), str(source)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def python_files(repository: Path) -> list[Path]:
    return [path for folder in SHIPPED for path in sorted((repository / folder).rglob("*.py"))]


def test_the_wheel_holds_every_module(repository: Path, wheel_names: list[str]) -> None:
    modules = {str(path.relative_to(repository)) for path in python_files(repository)}
    assert modules == {name for name in wheel_names if name.endswith(".py")}


def test_the_wheel_holds_every_configuration(repository: Path, wheel_names: list[str]) -> None:
    configs = [path for path in (repository / "configs").rglob("*") if path.suffix in (".yaml", ".json")]
    assert {f"vesselgan/{path.relative_to(repository)}" for path in configs} == {
        name for name in wheel_names if name.startswith("vesselgan/configs/")
    }
    assert "vesselgan/configs/train_gan.yaml" in wheel_names
    assert "vesselgan/configs/deepspeed/ds_fp16.json" in wheel_names


def test_the_wheel_holds_nothing_else(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(SHIPPED)
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_the_list_of_packages_is_the_list_of_folders(repository: Path, project: dict) -> None:
    folders = {".".join(p.parent.relative_to(repository).parts) for p in python_files(repository)}
    assert set(project["tool"]["setuptools"]["packages"]) == folders | {"vesselgan.configs"}
    assert all((repository / folder.replace(".", "/") / "__init__.py").is_file() for folder in folders)


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-") for line in requirements}


def test_what_is_imported_is_required_and_what_is_required_is_imported(repository: Path, project: dict) -> None:
    imported = set()
    for path in python_files(repository):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
                # TensorBoard is reached through torch alone.
                imported |= {"tensorboard"} if node.module == "torch.utils.tensorboard" else set()
    owners = packages_distributions()
    foreign = imported - set(sys.stdlib_module_names) - set(SHIPPED)
    # An extra's package may be absent here, and may be called otherwise than its module.
    names = {owners.get(name, [{"skimage": "scikit-image"}.get(name, name)])[0] for name in foreign}
    distributions = {name.lower().replace("_", "-") for name in names}
    required = requirement_names(project["project"]["dependencies"])
    extras = project["project"]["optional-dependencies"]
    optional = requirement_names([line for name in extras if name != "test" for line in extras[name]])
    assert distributions - optional == required


def test_every_requirement_has_its_exact_version_in_the_constraints(repository: Path, project: dict) -> None:
    pins = dict(
        line.lower().split("==")
        for line in (repository / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    extras = project["project"]["optional-dependencies"].values()
    wanted = requirement_names([*project["project"]["dependencies"], *(line for extra in extras for line in extra)])
    assert wanted - set(pins) == set()
    assert (pins["torch"], pins["deepspeed"], pins["hydra-core"]) == ("2.13.0", "0.19.8", "1.3.8")


def test_the_versions_agree(repository: Path, project: dict) -> None:
    version = project["project"]["version"]
    assert f'__version__ = "{version}"' in (repository / "vesselgan/core/version.py").read_text()
    assert f"\nversion: {version}\n" in (repository / "CITATION.cff").read_text()


def make(repository: Path, tmp_path: Path, python: str, script: str) -> subprocess.CompletedProcess[str]:
    """`make demo` in a folder without .venv, with `script` standing in for the interpreter `python`."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "sh", "cat", "sed", "test", "echo"):
        (tools / name).symlink_to(shutil.which(name))
    if script:
        (tools / python).write_text(f"#!/bin/sh\n{script}\n")
        (tools / python).chmod(0o755)
    environment = {"PATH": str(tools)}
    command = [str(tools / "make"), "demo", f"PYTHON={python}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)


def error_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("make")]


def test_a_missing_python_is_one_line(repository: Path, tmp_path: Path) -> None:
    done = make(repository, tmp_path, "python3", "")
    (line,) = error_lines(done)
    assert done.returncode == 2
    assert line.startswith("error: python3 is not installed: sudo apt install python3 python3-venv")


def test_an_older_python_is_one_line_with_its_version(repository: Path, tmp_path: Path) -> None:
    script = 'case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac'
    done = make(repository, tmp_path, "python3", script)
    (line,) = error_lines(done)
    assert done.returncode == 2
    assert line.startswith("error: python3 is Python 3.9.2, Python 3.11 or newer is needed")


def test_a_python_without_venv_is_one_line(repository: Path, tmp_path: Path) -> None:
    script = 'case "$2" in *ensurepip*) echo "No module named ensurepip" >&2; exit 1;; *) exit 0;; esac'
    done = make(repository, tmp_path, "python3.11", script)
    (line,) = error_lines(done)
    assert done.returncode == 2
    assert line == "error: python3.11 lacks venv: sudo apt install python3-venv"
    assert not (tmp_path / ".venv").exists()


def planned(folder: Path) -> str:
    """What `make demo` would do in `folder`; a make around the tests must not speak through this one."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "-n", "--no-print-directory", "demo"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=True).stdout


def test_a_finished_installation_is_not_repeated(repository: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    stamp = tmp_path / ".venv/.installed"
    extras = re.search(r"^EXTRAS \?= (.*)$", (repository / "Makefile").read_text(), re.MULTILINE)[1]
    # newer than the pins, so there is nothing to do but the demo itself
    stamp.write_text(f"{tmp_path} {extras}\n")
    assert planned(tmp_path) == ".venv/bin/python launch/demo.py\n"
    stamp.write_text(f"/another/folder {extras}\n")
    assert "pip install" in planned(tmp_path)
    # a pin that changed since
    stamp.write_text(f"{tmp_path} {extras}\n")
    later = stamp.stat().st_mtime + 60
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert "pip install" in planned(tmp_path)
