"""What is installed is what the project needs."""

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
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is tracked or new, without a network."""
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
    return wheel


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def python_files(repository: Path) -> list[Path]:
    return [path for folder in SHIPPED for path in sorted((repository / folder).rglob("*.py"))]


def test_the_wheel_holds_modules_configurations_templates_alone(repository, wheel_names):
    modules = {str(path.relative_to(repository)) for path in python_files(repository)}
    configs = [path for path in (repository / "configs").rglob("*") if path.suffix in (".yaml", ".json")]
    expected = modules | {f"vesselgan/{path.relative_to(repository)}" for path in configs}
    shown = [p for f in SHIPPED for p in (repository / f).rglob("*") if p.suffix in (".html", ".css", ".mplstyle")]
    expected |= {str(path.relative_to(repository)) for path in shown}
    assert {name for name in wheel_names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_the_packages_listed_are_the_folders(repository, project):
    folders = {".".join(p.parent.relative_to(repository).parts) for p in python_files(repository)}
    assert set(project["tool"]["setuptools"]["packages"]) == folders | {"vesselgan.configs"}
    assert all((repository / folder.replace(".", "/") / "__init__.py").is_file() for folder in folders)


def test_the_wheel_needs_no_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (entries,) = (tmp_path / "site").glob("*.dist-info/entry_points.txt")
    assert "vesselgan = vesselgan.cli.main:main" in entries.read_text()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    where = "import vesselgan.cli.main as m; print(m.__file__)"
    for words in (["-c", where], ["-m", "vesselgan", "train-gan", "variant=sn", "--print_config"]):
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert str(tmp_path) in done.stdout or "width: 512" in done.stdout


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-") for line in requirements}


def test_what_is_imported_is_what_is_required(repository, project):
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


def test_every_requirement_has_its_exact_version(repository, project):
    lines = (repository / "constraints.txt").read_text().lower().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = project["project"]["optional-dependencies"].values()
    wanted = requirement_names([*project["project"]["dependencies"], *(line for extra in extras for line in extra)])
    assert wanted - set(pins) == set()


def test_the_versions_agree(repository, project):
    version = project["project"]["version"]
    assert f'__version__ = "{version}"' in (repository / "vesselgan/core/version.py").read_text()
    assert f"\nversion: {version}\n" in (repository / "CITATION.cff").read_text()
