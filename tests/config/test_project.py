"""A project file stands above configs/ and below what is typed; layouts may lie anywhere."""

from pathlib import Path

import pytest

from vesselgan.config import project
from vesselgan.config.compose import compose, config_hash, parse
from vesselgan.core.errors import UsageError

PROJECT = """
data: {layout}
data.name: mine
data.root: /data/my cohort
data.prepare.split: {{validation: 5, test: 5}}
work_dir: /scratch
num_patches: 50
"""
LAYOUT = "layout: {image: '{subject}/tof.nii.gz', label: null, mask: null}\nprepare: {patch_shape: [32, 32, 16]}\n"


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A project file outside the checkout, whose layout is a file too."""
    (tmp_path / "tof only.yaml").write_text(LAYOUT)
    (tmp_path / "mine.yaml").write_text(PROJECT.format(layout=tmp_path / "tof only.yaml"))
    return f"project={tmp_path / 'mine.yaml'}"


def test_a_project_serves_every_command(own, monkeypatch):
    check = parse("check", None, [own]).config
    assert (check.data.name, check.data.root, check.data.cohort_dir) == ("mine", "/data/my cohort", "/scratch/mine")
    assert (check.data.prepare.split.test, check.data.prepare.patch_shape) == (5, [32, 32, 16])
    gan = parse("train_gan", None, [own]).config
    assert (check.data.layout.image, gan.work_dir) == ("{subject}/tof.nii.gz", "/scratch")
    assert parse("generate", None, [own, "run=x"]).config.num_patches == 50
    monkeypatch.setenv(project.VARIABLE, own.removeprefix(project.KEY))
    assert parse("report", None, []).config.results == "/scratch/results"


@pytest.mark.parametrize(
    ("typed", "name", "root"),
    [
        ([], "mine", "/data/my cohort"),
        (["data.name=typed"], "typed", "/data/my cohort"),
        (["data=pegasus"], "pegasus", "/scratch/pegasus/nifti"),
        (["preset=other"], "phantom_other", "/scratch/phantom_other/nifti"),
        (["preset=preprocessed"], "mine", "/scratch/mine/preprocessed"),
    ],
)
def test_what_is_typed_wins(own, typed, name, root):
    data = parse("check", None, [own, *typed]).config.data
    assert (data.name, data.root) == (name, root)


@pytest.mark.parametrize("where", ["project", "layout"])
def test_unknown_keys_are_named(where, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("wrok_dir: x\nrot: y\n")
    with pytest.raises(UsageError, match="wrok_dir, (data.)?rot") as error:
        parse("check", None, [f"project={path}" if where == "project" else f"data={path}"])
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["[1]", "a: [", "data.root: ${oc.env:HOME}", "1: 2", "data: {1: a}", "data.name: 2024-01-01"]
)
def test_a_file_of_no_settings_is_refused(text, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UsageError, match="bad.yaml"):
        parse("check", None, [f"project={tmp_path / 'bad.yaml'}"])


@pytest.mark.parametrize("bases", ["null", "[pairs, nnunet]", "[{override /data: pairs}]"])
def test_a_layout_extends_one(bases, tmp_path):
    (tmp_path / "bad.yaml").write_text(f"defaults: {bases}")
    with pytest.raises(UsageError, match="defaults"):
        parse("check", None, [f"data={tmp_path / 'bad.yaml'}"])


def test_a_layout_file_extends_a_shipped_one(tmp_path):
    (tmp_path / "scanner.yaml").write_text("defaults: [pegasus, _self_]\nscaling: patch\n")
    file = f"data={tmp_path / 'scanner.yaml'}"
    data = parse("check", None, [file]).config.data
    assert (data.name, data.layout.image) == ("scanner", "{subject}/001_img_denoised.nii.gz")
    assert parse("train_gan", None, [file]).config.data.scaling == "patch"


def test_the_same_settings_have_the_same_name(own):
    typed = ["data=pairs", "data.name=mine", "work_dir=/scratch"]
    assert config_hash(parse("train_gan", None, [own]).config) == config_hash(compose("train_gan", typed))


def test_provenance_names_the_project(own, monkeypatch):
    monkeypatch.setattr("sys.argv", ["vesselgan check", own])
    assert project.record()["file"] == "mine.yaml"
    monkeypatch.setattr("sys.argv", ["vesselgan check"])
    assert project.record() is None
