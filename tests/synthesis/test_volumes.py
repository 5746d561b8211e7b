"""Whole heads as a cohort: what lies on disk, that it is read as a patient's, resumed, and refused in words."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from data_prep import build_shards, patches
from data_prep.mpi import MpiWorld
from data_prep.preprocess import prepare
from vesselgan.config import compose
from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.evaluation.reference import find_reference
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.nifti import read_header
from vesselgan.formats.shards import PROCEDURAL_TREES, ShardSet, content_hash, training_hashes
from vesselgan.formats.synthetic_volumes import COMPARISON
from vesselgan.formats.volumes import write_volume
from vesselgan.models.variants import build_networks, init_networks
from vesselgan.segmentation.training_provenance import learned_from
from vesselgan.synthesis import volumes as synthesis
from vesselgan.synthesis.run import run
from vesselgan.synthesis.volume_comparison import _of_real
from vesselgan.synthesis.windows import make_image
from vesselgan.training.run import _training_set

from ..conftest import write_set, write_subject

SHAPE = (64, 80, 41)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def write_run(write_checkpoint):
    """Writes a run directory with one checkpoint of a generator that never learned, and returns it."""

    def write(run_dir: Path, variant: str = "flow_label") -> Path:
        words = [f"variant={variant}", "variant.width=8", f"work_dir={run_dir}"]
        words += ["variant.flow.num_steps=2"] if variant.startswith("flow") else []
        config = compose.compose("train_gan", words)
        networks = build_networks(config.variant, (16, 16, 16))
        init_networks(networks, 1)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in networks["generator"].parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        files = dict.fromkeys(("generator", "generator_ema"), networks["generator"].state_dict())
        manifest = {"patch_shape": [16, 16, 16], "spacing_mm": [1.0, 1.05, 1.2], "percentiles": (0.0, 99.99)}
        write_checkpoint(run_dir, config, files, manifest)
        return run_dir

    return write


def heads(run_dir: Path, out: Path, *words: str) -> Path:
    shape = f"shape=[{','.join(map(str, SHAPE))}]"
    settings = [f"run={run_dir}", "volumes=2", shape, "batch_size=16", f"out={out}", "runtime.device=cpu", *words]
    run(compose.compose("generate", settings))
    return out


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.nii.gz")}


@pytest.mark.parametrize("variant", ["flow_label", "gan_label"])
def test_heads_enter_data_preparation_as_they_are(tmp_path, capsys, variant, write_run):
    from data_prep.check import check

    out = heads(write_run(tmp_path / "run", variant), tmp_path / "heads")
    assert "synthetic heads: seams" in capsys.readouterr().out
    words = ["data=pairs", f"data.root={out}", f"work_dir={tmp_path}", "data.name=heads"]
    words += ["data.prepare.patch_shape=[16,16,16]"]
    check(compose.compose("check", words).data, MpiWorld(0, 1, None))
    shown = capsys.readouterr()
    assert "fault" not in shown.out + shown.err and "text in" not in shown.out + shown.err
    for path in out.rglob("*.nii.gz"):
        header = read_header(path)
        assert (header.shape, header.orientation, header.text_fields) == (SHAPE, "RAS", ())
        np.testing.assert_allclose(header.spacing_mm, (1.0, 1.05, 1.2), rtol=1e-6)
        assert nib.load(path).header["descrip"].item() == b"synthetic"
    for label in (out / "labels").iterdir():
        vessel_XYZ = np.asarray(nib.load(label).dataobj)
        assert 1 <= ndimage.label(vessel_XYZ, np.ones((3, 3, 3)))[1] <= 3


def test_a_unet_learns_from_heads_as_synthetic(tmp_path, capsys, monkeypatch, write_run):
    """Their patches say who made them, and from whose volumes; none may train a generator or choose a U-Net."""
    monkeypatch.setattr(synthesis, "make_image", lambda network, given, **how: given[0] / 2)
    run_dir = write_run(tmp_path / "run")
    real = write_set(tmp_path / "cohort/shards/gan/train", range(2), ["a", "b"])
    (run_dir / "provenance.json").write_text(json.dumps({"inputs": {"gan/train": content_hash(real)}}))
    root = heads(run_dir, tmp_path / "heads/nifti")

    def cohort(folder: Path, name: str = "heads", *more: str):
        words = ["data=pairs", f"data.root={folder}", f"work_dir={tmp_path}", f"data.name={name}"]
        own = ("patch_shape=[16,16,16]", "num_vessel_patches_unet=6", "grid_patches=[unet]")
        config = compose.compose("build_shards", [*words, *(f"data.prepare.{word}" for word in own), *more])
        build_shards.build(config, MpiWorld(0, 1, None))
        return tmp_path / name / "shards"

    shards = ShardSet(cohort(root) / "unet/train")
    assert [
        path.name for path in shards.folder.parent.parent.iterdir() if path.suffix == "" and path.name[0] != "."
    ] == ["unet"]
    assert not (shards.folder.parent / "validation").exists()
    assert (shards.origin, shards.kind(0), shards.manifest.extra["run"]) == ("synthetic", "synthetic", run_dir.name)
    assert training_hashes(shards.manifest.extra) == {content_hash(real)}
    assert shards.label_threshold == 0.5 and shards.manifest.extra[PROCEDURAL_TREES]
    record = shards[len(shards) - 1]
    head_XYZ = np.asarray(nib.load(root / "labels" / f"{record.subject}.nii.gz").dataobj)
    np.testing.assert_array_equal(record.label_XYZ, patches.cut(head_XYZ, record.corner, (16, 16, 16)))
    np.testing.assert_array_equal(record.score_XYZ, record.label_XYZ)
    learned = learned_from(str(tmp_path / "cohort"), [shards], ShardSet(real))
    assert learned["gan"]["run"] == run_dir.name
    assert not [reason for reason in learned["unknown"] if "GAN" in reason]  # what it learned from was looked up

    with pytest.raises(DataError, match="a generator learns from patients'"):
        _training_set(compose.compose("train_gan", [f"data.cohort_dir={with_gan_set(tmp_path, shards)}"]))
    with pytest.raises(DataError, match="holds synthetic patches"):
        find_reference(str(tmp_path / "heads"), "train")
    for word, named in (("purposes=[gan]", "name unet"), ("data.prepare.split.csv=splits.csv", "all for training")):
        with pytest.raises(UsageError, match=named):
            cohort(root, "other", word)
    with pytest.raises(UsageError, match="holds synthetic heads"):
        prepare(compose.compose("preprocess", ["data=pairs", f"data.root={root}", f"work_dir={tmp_path}"]))

    head = nib.load(image := next((root / "images").iterdir()))
    write_volume(image, np.asarray(head.dataobj, np.float32), head.affine)
    with pytest.raises(DataError, match="unusable"):
        cohort(root, "mixed")
    assert "not a generator's, among its heads" in capsys.readouterr().out


def test_noise_is_added_inside_the_head_and_within_its_range(tmp_path, monkeypatch, write_run):
    monkeypatch.setattr(synthesis, "make_image", lambda network, given, **how: given[1] / 2)
    monkeypatch.setattr(synthesis, "compare_with_training", lambda out, subjects, windows, run: None)
    run_dir = write_run(tmp_path / "run")
    plain, noisy = heads(run_dir, tmp_path / "a"), heads(run_dir, tmp_path / "b", "noise=[2,6]")
    deviations = []
    for path in sorted((plain / "images").iterdir()):
        before_XYZ, after_XYZ = (np.asarray(nib.load(out / "images" / path.name).dataobj) for out in (plain, noisy))
        outside_XYZ = before_XYZ == before_XYZ.min()  # of the tissue map that stands for the image
        np.testing.assert_array_equal(before_XYZ[outside_XYZ], after_XYZ[outside_XYZ])
        deviations.append((after_XYZ - before_XYZ)[~outside_XYZ].std())
    assert 2 < min(deviations) < max(deviations) < 6
    kinds = ("labels", "masks")
    assert all(content(plain)[name] == content(noisy)[name] for name in content(plain) if name.startswith(kinds))
    with pytest.raises(UsageError, match="noise"):
        heads(run_dir, tmp_path / "b")


def test_shards_that_were_built_as_real_are_not_taken_for_synthetic(tmp_path, monkeypatch, write_run):
    """As before the heads' origin was known."""
    monkeypatch.setattr(synthesis, "make_image", lambda network, given, **how: given[0] / 2)
    root = heads(write_run(tmp_path / "run"), tmp_path / "heads/nifti")
    made = (root / "generation.json").rename(tmp_path / "aside")
    words = ["data=pairs", f"data.root={root}", f"work_dir={tmp_path}", "data.name=heads"]
    words += [f"data.prepare.{word}" for word in ("patch_shape=[16,16,16]", "split.validation=0", "split.test=0")]
    config = compose.compose("build_shards", words)
    build_shards.build(config, MpiWorld(0, 1, None))
    made.rename(root / "generation.json")
    with pytest.raises(UsageError, match="origin"):
        build_shards.build(compose.compose("build_shards", words), MpiWorld(0, 1, None))


def test_heads_without_their_origin_are_named(tmp_path, capsys, monkeypatch, write_run):
    from data_prep.check import check

    monkeypatch.setattr(synthesis, "make_image", lambda network, given, **how: given[0] / 2)
    root = heads(write_run(tmp_path / "run"), tmp_path / "heads")
    (root / "generation.json").unlink()
    words = ["data=pairs", f"data.root={root}", f"work_dir={tmp_path}", "data.prepare.patch_shape=[16,16,16]"]
    words += ["data.prepare.split.validation=1", "data.prepare.split.test=0"]
    check(compose.compose("check", words).data, MpiWorld(0, 1, None))
    assert "2 volumes of 2 were made by a generator" in capsys.readouterr().out


def with_gan_set(folder: Path, shards: ShardSet) -> Path:
    """A cohort whose generator set holds synthetic patches."""
    shutil.copytree(shards.folder, folder / "copied/shards/gan/train")
    return folder / "copied"


def test_a_lost_training_cohort_ends_nothing(tmp_path, capsys, monkeypatch, write_run):
    """Shards may have travelled without their volumes."""
    monkeypatch.setattr(synthesis, "make_image", lambda network, given, **how: given[0])
    run_dir = write_run(tmp_path / "run")
    folder = write_set(tmp_path / "run/phantom/shards/gan/train", range(2), ["a", "b"])
    (run_dir / "provenance.json").write_text(json.dumps({"inputs": {"gan/train": content_hash(folder)}}))
    assert len(content(heads(run_dir, tmp_path / "heads", "volumes=1"))) == 3
    assert "not compared with the training cohort" in capsys.readouterr().out
    assert json.loads((tmp_path / "heads" / COMPARISON).read_text()).keys() == {"synthetic heads"}


def test_a_changed_mask_is_not_measured(tmp_path):
    label = np.zeros((16, 16, 16), np.uint8)
    label[3:13, 8, 8] = 1
    subject = write_subject(tmp_path, "train", {"image": label + 1, "label": label, "mask": label + 1 > 0}, np.eye(4))
    Cohort("heads", (0.0, 99.99), {"a": subject}).write(tmp_path)
    statistics, _ = _of_real(str(tmp_path), "a", (8, 8, 8))
    assert statistics.brain_share == 1
    write_volume(subject.mask, label, np.eye(4))
    with pytest.raises(DataError, match="changed"):
        _of_real(str(tmp_path), "a", (8, 8, 8))


def test_stopped_heads_resume_to_the_same_bytes(tmp_path, monkeypatch, write_run):
    monkeypatch.setattr(synthesis, "compare_with_training", lambda out, subjects, windows, run: None)
    run_dir = write_run(tmp_path / "run")
    straight = content(heads(run_dir, tmp_path / "straight"))
    assert len(straight) == 6

    def stop_at_the_second(network, label_XYZ, *, seed, batch_size, advance):
        if list((tmp_path / "broken" / "images").glob("*")):
            raise KeyboardInterrupt
        return make_image(network, label_XYZ, seed=seed, batch_size=batch_size, advance=advance)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthesis, "make_image", stop_at_the_second)
        heads(run_dir, tmp_path / "broken")
    first = next((tmp_path / "broken" / "images").iterdir())
    written = first.stat().st_mtime_ns
    assert content(heads(run_dir, tmp_path / "broken")) == straight
    assert first.stat().st_mtime_ns == written
    heads(run_dir, tmp_path / "broken", "volumes=3")  # more of the same
    assert len(content(tmp_path / "broken")) == 9
    with pytest.raises(UsageError, match="seed: 990 -> 1"):
        heads(run_dir, tmp_path / "broken", "seed=1")


def test_a_head_that_is_not_whole_is_made_again(tmp_path, monkeypatch, write_run):
    monkeypatch.setattr(synthesis, "make_image", lambda network, given, **how: given[0] / 2)
    run_dir = write_run(tmp_path / "run")
    out = heads(run_dir, tmp_path / "heads")
    whole = content(out)
    (first, second) = sorted(path.name for path in (out / "images").iterdir())
    (out / "labels" / first).unlink()
    (out / "masks" / second).write_bytes(b"")
    assert content(heads(run_dir, out)) == whole
    (out / "images" / first).write_bytes(whole[f"images/{first}"][:-30])
    assert content(heads(run_dir, out)) == whole


@pytest.mark.parametrize(
    ("variant", "words", "named"),
    [
        ("flow", (), "flow_label"),
        ("flow_label", ("shape=[64,80,30]",), "shape"),
        ("flow_label", ("spacing_mm=[0.2,0.2,0.2]",), "shape"),
        ("flow_label", ("spacing_mm=[]",), "spacing_mm"),
        ("flow_label", ("shape=[64,80,100000]",), "shape"),
        ("flow_label", ("shape=[2000,2000,2000]", "spacing_mm=[0.2,0.2,0.2]"), "voxels"),
        ("flow_label", ("num_patches=3",), "num_patches"),
        ("flow_label", ("nifti=true",), "nifti"),
        ("flow_label", ("noise=[3,2]",), "noise"),
    ],
)
def test_what_makes_no_heads_is_refused(tmp_path, variant, words, named, write_run):
    with pytest.raises(UsageError, match=named):
        heads(write_run(tmp_path / "run", variant), tmp_path / "heads", *words)
    assert not (tmp_path / "heads").exists()


def test_a_folder_below_a_file_is_refused(tmp_path, write_run):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="out="):
        heads(write_run(tmp_path / "run"), tmp_path / "file/heads")


def test_heads_larger_than_memory_are_refused(tmp_path, monkeypatch, write_run):
    """64 x 80 x 41 voxels of 50 bytes: 10 MB."""
    monkeypatch.setattr(synthesis.memory, "available_bytes", lambda: 9e6)
    with pytest.raises(ResourceError, match="memory"):
        heads(write_run(tmp_path / "run"), tmp_path / "heads")
    assert not (tmp_path / "heads").exists()


def test_patches_of_no_head_are_refused(tmp_path, write_run):
    """Before anything is written; and settings of heads with patches."""
    run_dir = write_run(tmp_path / "run")
    with pytest.raises(UsageError, match="no head"):
        run(compose.compose("generate", [f"run={run_dir}", "num_patches=2", f"out={tmp_path / 'patches'}"]))
    assert not (tmp_path / "patches").exists()
    with pytest.raises(UsageError, match="label_threshold"):  # its labels are given, not made
        run(compose.compose("generate", [f"run={run_dir}", "label_threshold=0.3"]))
    with pytest.raises(UsageError, match="spacing_mm"):
        compose.compose("generate", [f"run={run_dir}", "spacing_mm=[1,1,1]"])


def test_patches_on_several_ranks_are_refused(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="2 ranks"):
        run(compose.compose("generate", ["run=x"]))


@pytest.mark.soak
def test_two_ranks_make_the_heads_of_one(tmp_path, repository, write_run):
    run_dir = write_run(tmp_path / "run")
    one = content(heads(run_dir, tmp_path / "one"))
    python = Path(sys.executable)
    words = [f"run={run_dir}", "volumes=2", "shape=[64,80,41]", "batch_size=16", "runtime.device=cpu"]
    start = [str(python.parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(28500 + os.getpid() % 999)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    command = [*start, str(repository / "launch/generate.py"), *words, f"out={tmp_path / 'two'}"]
    subprocess.run(command, env=environment, check=True, timeout=200)
    assert content(tmp_path / "two") == one
