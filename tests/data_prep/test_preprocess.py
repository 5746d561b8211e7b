"""Preprocessing: what each step does to a volume, what is written beside it, and what a second start finds."""

import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep import brain_mask, build_shards, check, denoise, preprocess
from data_prep.output import PREPROCESSED
from vesselgan.config.compose import Command, compose
from vesselgan.config.schema import BuildShards, PreparedData, Preprocess, Preprocessing
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import DataError, ResourceError, UsageError

from .conftest import ALONE, change, python_on_ranks
from .conftest import run as run_command

PLAIN_WORDS = ["data=phantom", "preprocess.denoise=false", "preprocess.bias=false", "preprocess.mask=given"]
PLAIN = compose("preprocess", PLAIN_WORDS).preprocess


def run(data: PreparedData, settings: Preprocessing = PLAIN) -> Path:
    """Preprocess in this process; the folder that was written."""
    out = Path(data.cohort_dir) / "preprocessed"
    config = Preprocess(work_dir="unused", data=data, preprocess=settings, out=str(out))
    preprocess.preprocess(Command(config, None, False, ("data=phantom", f"data.root={data.root}")), ALONE)
    return out


def array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_without_steps_volumes_come_out_unchanged(cohort):
    data = cohort(2)
    flipped = np.diag([-0.5, 0.5, 0.7, 1.0])  # left to right: the output keeps the file's own axes
    for name in ("image", "vessel", "brain_mask"):
        change(Path(data.root) / "sub-01" / f"{name}.nii.gz", lambda voxels: voxels, flipped)
    out = run(data)
    for subject in ("sub-01", "sub-02"):
        for name in ("image", "vessel", "brain_mask"):
            before, after = (nib.load(root / subject / f"{name}.nii.gz") for root in (Path(data.root), out))
            np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
            np.testing.assert_array_equal(after.affine, before.affine)
    assert not list(out.rglob("*.partial")) and not list(out.rglob("scratch"))


def test_what_was_done_is_written_beside_each_volume(cohort):
    data = cohort(1)
    folder = run(data, replace(PLAIN, spacing_mm=[1.0, 1.0, 0.7])) / "sub-01"
    source = Path(data.root) / "sub-01"
    inputs = {k: sha256_of(source / f"{n}.nii.gz") for k, n in preprocess.NAMES.items()}
    for kind, name in preprocess.NAMES.items():
        entry = json.loads((folder / f"{name}.json").read_text())
        assert entry["kind"] == kind and entry["inputs"] == inputs
        assert entry["output"]["sha256"] == sha256_of(folder / f"{name}.nii.gz")
        assert entry["output"]["shape"] == [12, 10, 18]
        assert entry["output"]["spacing_mm"] == pytest.approx([1.0, 1.0, 0.7])
        (step,) = [step for step in entry["steps"] if step["step"] == "resample"]
        assert step["tool"] == "scipy affine_transform" and step["parameters"]["to_mm"] == [1.0, 1.0, 0.7]
        assert str(source) not in json.dumps(entry)
    mask = json.loads((folder / "brain_mask.json").read_text())["steps"][0]
    assert (mask["step"], mask["tool"]) == ("mask", "given")


def test_resampling_keeps_places_in_millimetres(cohort):
    # a bright block of 4 x 4 x 4 voxels of 0.5 x 0.5 x 0.7 mm keeps its centre of mass and its volume
    data = cohort(1)
    source = Path(data.root) / "sub-01"
    label = np.zeros((24, 20, 18), np.uint8)
    label[8:12, 4:8, 10:14] = 1
    for name, content in (("image", 100 + 900 * label.astype(np.int16)), ("vessel", label)):
        nib.save(nib.Nifti1Image(content, np.diag([0.5, 0.5, 0.7, 1])), source / f"{name}.nii.gz")
    folder = run(data, replace(PLAIN, spacing_mm=[0.25, 0.25, 0.35])) / "sub-01"
    for name, level in (("vessel", 0), ("image", 550)):
        made = nib.load(folder / f"{name}.nii.gz")
        voxels = np.argwhere(np.asarray(made.dataobj) > level)
        centre_mm = nib.affines.apply_affine(made.affine, voxels).mean(axis=0)
        # centre of voxels 8..11, 4..7, 10..13 of the old grid
        np.testing.assert_allclose(centre_mm, [9.5 * 0.5, 5.5 * 0.5, 11.5 * 0.7], atol=1e-6)
        # 8 new voxels for an old one, but the block's corners, where 0.75 ** 3 of the linear weights is below one half
        assert made.shape == (48, 40, 36)
        assert len(voxels) == 8 * 4**3 - 8 if name == "vessel" else abs(len(voxels) - 8 * 4**3) <= 8
    image = array(folder / "image.nii.gz")
    assert image.min() >= 100 and image.max() <= 1000  # a spline's overshoot is cut


def test_vessels_lost_by_resampling_are_warned_of(cohort, capsys):
    data = cohort(2)
    thin = np.zeros((24, 20, 18), np.uint8)
    thin[10, 4:16, 9] = 1  # 12 voxels of 0.5 x 0.5 x 0.7 mm in a row: 2.1 mm3
    change(Path(data.root) / "sub-02" / "vessel.nii.gz", lambda label: thin)
    out = run(data, replace(PLAIN, spacing_mm=[1.0, 1.0, 0.7]))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert line.startswith("warning sub-02") and "-100% (2.1 to 0 mm3)" in line
    (step,) = [s for s in json.loads((out / "sub-02/vessel.json").read_text())["steps"] if s["step"] == "resample"]
    assert step["vessel_mm3_before_and_after"] == [pytest.approx(2.1), 0.0]


@pytest.mark.parametrize("spacing_mm", [[100.0, 100.0, 100.0], [1e-3, 1e-3, 1e-3]])
def test_a_spacing_that_leaves_no_volume_is_refused(cohort, spacing_mm):
    with pytest.raises(DataError, match=r"sub-01/image\.nii\.gz: .*preprocess\.spacing_mm="):
        run(cohort(1), replace(PLAIN, spacing_mm=spacing_mm))


def test_noise_in_the_head_is_measured_and_lowered():
    draw = np.random.default_rng(1)
    clean = np.zeros((40, 40, 24), np.float32)
    clean[4:36, 4:36, 2:22] = 200
    clean[18:22, 4:36, 8:12] = 800  # a vessel
    noisy = np.where(clean > 0, clean + draw.normal(0, 12, clean.shape), 0).astype(np.float32)
    # 8,000 details of 8 voxels each: the median's standard error is 1.2 %
    assert denoise.noise_sigma(noisy) == pytest.approx(12, rel=0.05)
    smooth, facts = denoise.denoise(noisy, strength=0.6, patch=3, distance=2)
    inside = clean == 200
    assert (smooth - clean)[inside].std() < 0.6 * (noisy - clean)[inside].std()
    assert smooth[19:21, 10:30, 9:11].mean() == pytest.approx(800, rel=0.02)
    assert facts["parameters"]["sigma"] == pytest.approx(12, rel=0.05) and facts["version"]


def test_a_bias_field_is_flattened(cohort):
    pytest.importorskip("SimpleITK", reason="extra: preprocess")
    data = cohort(1)
    shape = (48, 48, 24)
    x = np.linspace(-1, 1, shape[0])[:, None, None]
    field = np.exp(0.4 * x) * np.ones(shape)
    head = np.zeros(shape)
    head[4:44, 4:44, 2:22] = 300
    draw = np.random.default_rng(2)
    image = np.where(head > 0, head * field + draw.normal(0, 3, shape), 0).astype(np.float32)
    source, affine = Path(data.root) / "sub-01", np.diag([2.0, 2.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(image, affine), source / "image.nii.gz")
    for name in ("vessel", "brain_mask"):
        label = np.zeros(shape, np.uint8)
        label[20:24, 20:24, 10:14] = 1
        nib.save(nib.Nifti1Image(label, affine), source / f"{name}.nii.gz")
    folder = run(data, replace(PLAIN, bias=True, bias_shrink=1, bias_iterations=[20, 20])) / "sub-01"
    corrected = array(folder / "image.nii.gz")
    inside = head > 0

    def unevenness(volume: np.ndarray) -> float:
        return float(volume[inside].std() / volume[inside].mean())

    assert unevenness(corrected) < 0.35 * unevenness(image)  # 0.21 before
    assert not corrected[~inside].any()
    steps = json.loads((folder / "image.json").read_text())["steps"]
    assert [step["tool"] for step in steps] == ["SimpleITK N4BiasFieldCorrection"]


def test_a_second_start_makes_only_what_is_missing(cohort):
    data = cohort(3)
    out = run(data)
    before = {p: (p.stat().st_ino, p.read_bytes()) for p in sorted(out.rglob("*")) if p.is_file()}
    for path in (out / "sub-02").iterdir():
        path.unlink()
    (out / "sub-02").rmdir()
    (out / ".sub-02.partial" / "scratch").mkdir(parents=True)  # what a killed start leaves
    run(data)
    after = {p: (p.stat().st_ino, p.read_bytes()) for p in sorted(out.rglob("*")) if p.is_file()}
    assert {p: content for p, (_, content) in after.items()} == {p: content for p, (_, content) in before.items()}
    assert {p.parent.name for p in after if after[p][0] != before[p][0]} <= {
        "sub-02",
        out.name,
    }


def test_damage_and_changed_inputs_are_repaired_on_request(cohort):
    data = cohort(3)
    out = run(data)
    whole = (out / "sub-01" / "vessel.nii.gz").read_bytes()
    (out / "sub-01" / "vessel.nii.gz").write_bytes(whole[:-9])
    path = Path(data.root) / "sub-03" / "image.nii.gz"
    change(path, lambda image: image + np.int16(1))
    (out / "sub-02" / "vessel.json").unlink()
    with pytest.raises(DataError, match="sub-01/vessel.nii.gz.*sub-02/vessel.json.*sub-03.*repair"):
        run(data)
    data.prepare.repair = True
    run(data)
    assert (out / "sub-01" / "vessel.nii.gz").read_bytes() == whole
    np.testing.assert_array_equal(array(out / "sub-03" / "image.nii.gz"), array(path))


def test_a_withdrawn_subjects_output_is_set_aside(cohort):
    data = cohort(3)
    out = run(data)
    (Path(data.root) / "sub-02").rename(Path(data.cohort_dir) / "withdrawn")
    with pytest.raises(DataError, match="sub-02"):
        run(data)
    data.prepare.repair = True
    run(data)
    place = out / preprocess.SET_ASIDE / "sub-02"
    assert len(list(place.iterdir())) == 6
    left = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    assert left == ["preprocess.json", "sub-01", "sub-03"]


def test_output_of_a_broken_subject_is_set_aside(cohort):
    data = cohort(3)
    data.prepare.quarantine = data.prepare.repair = True
    image = Path(data.root) / "sub-02" / "image.nii.gz"
    for place in ("sub-02", "sub-02.2"):  # it breaks, is mended, and breaks again
        whole = image.read_bytes()
        out = run(data)
        image.write_bytes(whole[:2000])
        run(data)
        assert not (out / "sub-02").exists() and (out / preprocess.SET_ASIDE / place / "image.nii.gz").is_file()
        image.write_bytes(whole)


def test_other_settings_and_foreign_folders_are_refused(cohort):
    data = cohort(1)
    out = run(data)
    with pytest.raises(UsageError, match="spacing_mm"):
        run(data, replace(PLAIN, spacing_mm=[1.0, 1.0, 1.0]))
    (out / PREPROCESSED).unlink()
    with pytest.raises(UsageError, match="preprocess.json"):
        run(data)
    config = Preprocess(work_dir="unused", data=data, preprocess=PLAIN, out=data.root)
    with pytest.raises(UsageError, match="data.root"):
        preprocess.preprocess(Command(config, None, False, ()), ALONE)


def test_one_bad_subject_does_not_stop_the_others(cohort, capsys):
    data = cohort(3)
    bad = Path(data.root) / "sub-02" / "image.nii.gz"
    bad.write_bytes(bad.read_bytes()[:2000])
    with pytest.raises(DataError, match="sub-02.*image.nii.gz"):
        run(data)
    out = Path(data.cohort_dir) / "preprocessed"
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["sub-01", "sub-03"]
    data.prepare.quarantine = True
    run(data)
    assert "set aside: sub-02" in capsys.readouterr().out


FAKE_BET = """#!{python}
import sys
import nibabel as nib, numpy as np
image, stem = nib.load(sys.argv[1]), sys.argv[2]
assert sys.argv[3:] == ["-f", "0.05", "-m", "-n"], sys.argv
mask = {mask}
nib.save(nib.Nifti1Image(mask, image.affine), stem + "_mask.nii.gz")
"""


def put_bet(folder: Path, monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "bet").write_text(FAKE_BET.format(python=sys.executable, mask=mask))
    (folder / "bet").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    (folder / "etc").mkdir(exist_ok=True)
    (folder / "etc" / "fslversion").write_text("6.0.7\n")
    monkeypatch.setenv("FSLDIR", str(folder))


def test_fsl_makes_the_mask_where_installed(cohort, tmp_path, monkeypatch):
    data = cohort(1)
    data.layout.mask = None
    put_bet(tmp_path / "fsl", monkeypatch, "(np.asarray(image.dataobj) > 100).astype(np.uint8)")
    folder = run(data, replace(PLAIN, mask="auto")) / "sub-01"
    np.testing.assert_array_equal(array(folder / "brain_mask.nii.gz"), array(folder / "image.nii.gz") > 100)
    (step,) = json.loads((folder / "brain_mask.json").read_text())["steps"]
    assert (step["tool"], step["version"], step["parameters"]) == ("FSL bet", "6.0.7", {"f": 0.05})


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("np.ones(image.shape, np.uint8)", "every voxel"),
        ("np.zeros(image.shape, np.uint8)", "no voxel"),
        ("np.ones((3, 3, 3), np.uint8)", "grid"),
        ("sys.exit('no licence')", "no licence"),
        ("sys.exit(0)", "no mask"),
    ],
)
def test_a_mask_that_cannot_be_right_is_refused(cohort, tmp_path, monkeypatch, mask, said):
    data = cohort(1)
    data.layout.mask = None
    put_bet(tmp_path / "fsl", monkeypatch, mask)
    with pytest.raises(DataError, match=f"sub-01: .*{said}"):
        run(data, replace(PLAIN, mask="bet"))
    assert not (Path(data.cohort_dir) / "preprocessed" / "sub-01").exists()


def test_without_any_tool_the_choices_are_listed(monkeypatch):
    monkeypatch.setattr(brain_mask.shutil, "which", lambda name: None)
    monkeypatch.setattr(brain_mask.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="preprocess.mask=none") as caught:
        brain_mask.choose_tool("auto", is_given=False)
    assert caught.value.exit_code == 6
    assert brain_mask.choose_tool("auto", is_given=True) == "given"
    assert brain_mask.choose_tool("none", is_given=False) == "none"
    with pytest.raises(ResourceError, match="preprocess.mask=bet"):
        brain_mask.choose_tool("bet", is_given=True)
    with pytest.raises(UsageError, match="data.layout.mask"):
        brain_mask.choose_tool("given", is_given=False)


def test_check_and_build_read_the_output(cohort, tmp_path):
    data = cohort(4)
    run(data)
    there = compose("check", ["data=pairs", f"work_dir={tmp_path / 'work'}", "data.name=tiny", "preset=preprocessed"])
    assert there.data.root == str(Path(data.cohort_dir) / "preprocessed")
    read = replace(data, root=there.data.root, layout=there.data.layout)
    check.check(read, ALONE)
    build_shards.build(BuildShards(work_dir="unused", data=read, purposes=["gan"]), ALONE)


def test_a_killed_preprocessing_is_not_complete(cohort, monkeypatch):
    data, make = cohort(4), preprocess.preprocess_subject

    def killed_at_third(subject: object, *arguments: object) -> object:
        if subject.subject == "sub-03":
            raise KeyboardInterrupt
        return make(subject, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preprocess, "preprocess_subject", killed_at_third)
        run(data)
    read = replace(data, root=str(Path(data.cohort_dir) / "preprocessed"))
    read.prepare.quarantine = True
    with pytest.raises(DataError, match="sub-03, sub-04"):
        check.check(read, ALONE)
    with pytest.raises(DataError, match="sub-03, sub-04"):
        build_shards.build(BuildShards(work_dir="unused", data=read, purposes=["gan"]), ALONE)


def test_subjects_set_aside_are_not_missing(cohort):
    data = cohort(4)
    data.prepare.quarantine = True
    (Path(data.root) / "sub-02" / "image.nii.gz").write_bytes(b"")
    check.check(replace(data, root=str(run(data))), ALONE)


def test_the_command_it_names_next_works(cohort, command, monkeypatch):
    cohort(4)
    words = ("data.layout.label=null", "preprocess.mask=none", "preprocess.denoise=false", "preprocess.bias=false")
    ended = command(*words, module=preprocess)
    assert ended.code == 0
    monkeypatch.setattr(sys, "argv", shlex.split(ended.out.partition("continue with: vesselgan ")[2]))
    check.main()


def test_two_ranks_write_the_same_bytes_as_one(cohort, tmp_path):
    data = cohort(3)
    out = run(data)
    other = tmp_path / "ranks"
    words = [*python_on_ranks(2), "-m", "data_prep.preprocess", "data=phantom"]
    words += [f"data.root={data.root}", f"out={other}", "preprocess.denoise=false", "preprocess.bias=false"]
    words += ["preprocess.mask=given"]
    done = run_command(words)
    assert done.returncode == 0, done.stderr
    for path in out.rglob("*.nii.gz"):
        assert (other / path.relative_to(out)).read_bytes() == path.read_bytes()
    assert len(list(other.rglob("*.nii.gz"))) == 9


def test_every_missing_tool_is_named_at_once(cohort, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    monkeypatch.setattr(brain_mask.shutil, "which", lambda name: None)
    monkeypatch.setattr(brain_mask.importlib.util, "find_spec", lambda name: None)
    data = cohort(1)
    data.layout.mask = None
    with pytest.raises(ResourceError, match=r"deepbet.*and.*SimpleITK.*vesselgan\[preprocess\]"):
        run(data, replace(PLAIN, bias=True, mask="auto"))
    assert not (Path(data.cohort_dir) / "preprocessed").exists()
