import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from vesselgan.config.compose import parse, to_yaml
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import CheckpointError, DataError, UsageError
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.predictions import Predictions
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.volumes import write_volume
from vesselgan.models.unet import Unet, init_unet_weights
from vesselgan.segmentation import predict
from vesselgan.segmentation.predict import Input, best_checkpoint, find_inputs, remove_small_components, segment
from vesselgan.segmentation.sliding_window import probability_map, rescale_minmax

FILTERS = (4, 6, 8)
PATCH = (16, 16, 8)


def make_unet(seed: int = 3) -> Unet:
    """Random weights, running statistics of some random input."""
    unet = Unet(FILTERS, 0.0)
    init_unet_weights(unet, seed)
    with torch.no_grad():
        unet.train()(torch.rand(4, 1, *PATCH, generator=torch.Generator().manual_seed(seed)) * 255)
    return unet.eval()


def image(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) * 255).astype(np.float32)


def directly(unet: Unet, image_XYZ: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return unet(torch.from_numpy(image_XYZ)[None, None])[0, 0].numpy()


def mapped(unet: Unet, image_XYZ: np.ndarray, **changes: object) -> np.ndarray:
    settings = {"patch_shape": PATCH, "overlap": 0.5, "batch_size": 3, "scaling": "volume"} | changes
    return probability_map(unet, image_XYZ, **settings)


@pytest.mark.parametrize(("shape", "overlap"), [((16, 16, 8), 0.0), ((12, 16, 8), 0.5), ((4, 8, 4), 0.75)])
def test_one_window_is_direct_inference(shape, overlap):
    unet = make_unet()
    x = image(*shape)
    # One window: its weights multiply and divide out, to the rounding of float32.
    np.testing.assert_allclose(mapped(unet, x, overlap=overlap), directly(unet, x), rtol=0, atol=1e-5)


def test_windows_leave_no_seam():
    class Pointwise(Unet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x / 255) ** 2

    unet = Pointwise(FILTERS, 0.0).eval()
    x = image(37, 19, 23)
    # Every window agrees on every voxel, so the weighted mean is that value: no seam, no shift, no lost voxel.
    np.testing.assert_allclose(mapped(unet, x), (x / 255) ** 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 40, 9), (33, 17, 3), (2, 2, 2), (16, 16, 9)])
def test_volumes_of_any_size_are_covered(shape):
    probability = mapped(make_unet(), image(*shape))
    assert probability.shape == shape and probability.dtype == np.float32
    assert np.isfinite(probability).all() and (probability > 0).all() and (probability < 1).all()


def test_a_thin_axis_is_reflected():
    unet, x = make_unet(), image(16, 16, 6)
    reflected = np.concatenate([x, x[:, :, 4:5], x[:, :, 3:4]], axis=2)
    np.testing.assert_allclose(mapped(unet, x), directly(unet, reflected)[:, :, :6], rtol=0, atol=1e-5)


def test_windows_do_not_depend_on_the_batch():
    unet, x = make_unet(), image(30, 20, 12)
    np.testing.assert_allclose(mapped(unet, x, batch_size=1), mapped(unet, x, batch_size=8), rtol=0, atol=1e-5)


def test_patch_scaling_stretches_every_window_by_itself():
    windows = torch.tensor([[10.0, 20.0, 30.0, 10.0], [7.0, 7.0, 7.0, 7.0]]).view(2, 1, 4, 1, 1)
    assert rescale_minmax(windows).flatten(1).tolist() == [[0.0, 127.5, 255.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    unet, x = make_unet(), image(*PATCH)
    dim = 40 + x / 10
    span = (x - x.min()) * (255 / (x.max() - x.min()))
    np.testing.assert_allclose(mapped(unet, dim, scaling="patch"), directly(unet, span), rtol=0, atol=1e-4)
    assert np.abs(mapped(unet, dim) - directly(unet, span)).max() > 0.01


@pytest.fixture
def run_dir(tmp_path: Path, write_checkpoint) -> Path:
    """A finished run with random weights and two checkpoints, the first the better one."""
    folder = tmp_path / "unet-run"
    config = parse("train_unet", None, [f"unet.filters={list(FILTERS)}".replace(" ", "")]).config
    facts = {"scaling": "volume", "percentiles": (0.0, 99.9), "patch_shape": list(PATCH)}
    facts |= {"spacing_mm": [0.5, 0.5, 0.7], "is_preprocessed": False}
    for number in (1, 2):
        write_checkpoint(folder, config, {"unet": make_unet(number).state_dict()}, number=number, **facts)
    (folder / "finished.json").write_text(json.dumps({"best_checkpoint": "step_00000001"}))
    return folder


def run_segment(run_dir: Path, out: Path, *settings: str) -> dict:
    words = [f"run={run_dir}", f"out={out}", "runtime.device=cpu", *settings]
    segment(parse("segment", None, words).config)
    return json.loads((out / "segmentation.json").read_text())


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
def test_output_lies_on_the_inputs_grid(run_dir, tmp_path, axes):
    canonical = image(18, 14, 10, seed=5) + 1
    turned = nib.orientations.axcodes2ornt(axes)
    there = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turned)
    stored = nib.orientations.apply_orientation(canonical, there)
    affine = np.diag([0.5, 0.6, 0.7, 1]) @ nib.orientations.inv_ornt_aff(there, canonical.shape)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "in" / "head.nii.gz")
    run_segment(run_dir, tmp_path / "out", f"input={tmp_path}/in", "threshold=0.4", "probability=true")
    found = nib.load(tmp_path / "out" / "head.nii.gz")
    assert found.shape == stored.shape and found.get_data_dtype() == np.float32
    probability = nib.load(tmp_path / "out" / "probability" / "head.nii.gz")
    assert probability.get_data_dtype() == np.float32 and np.array_equal(probability.affine, found.affine)
    assert np.array_equal(np.asarray(probability.dataobj) >= np.float32(0.4), np.asarray(found.dataobj) == 1)
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)
    # Expected by hand: percentile of the non-zero voxels, 0..255, the network, the threshold; then turned as the input.
    low, high = canonical.min(), np.percentile(canonical, 99.9)
    scaled = np.clip((canonical - low) * (255 / (high - low)), 0, 255).astype(np.float32)
    expected = mapped(make_unet(1), scaled) >= 0.4
    assert 0.02 < expected.mean() < 0.98
    same = nib.orientations.apply_orientation(expected, there) == np.asarray(found.dataobj)
    assert same.mean() > 0.999  # a probability within 1e-5 of the threshold may fall to either side


def test_input_is_file_folder_or_split(run_dir, tiny_cohort, tmp_path):
    def inputs(*settings: str) -> dict[str, Path]:
        cohort = [] if settings[0].startswith("input=") else [f"data.cohort_dir={tiny_cohort}"]
        words = [f"run={run_dir}", "out=out", *cohort, *settings]
        return {name: item.image for name, item in find_inputs(parse("segment", None, words).config)[0].items()}

    images = {name: tiny_cohort / "nifti" / name / "image.nii.gz" for name in ("sub-4", "sub-5")}
    assert inputs("split=test") == images
    assert list(inputs("split=validation")) == ["sub-3"]
    assert inputs(f"input={images['sub-4']}") == {"image": images["sub-4"]}
    folder = tmp_path / "folder"
    for name in ("b.nii", "a.nii.gz", "notes.txt", "._a.nii.gz"):
        write_volume(folder / name, image(4, 4, 4), np.eye(4))
    assert list(inputs(f"input={folder}")) == ["a", "b"]
    write_volume(folder / "a.nii", image(4, 4, 4), np.eye(4))
    with pytest.raises(DataError, match="a.nii.gz"):
        inputs(f"input={folder}")
    for name in ("missing", "notes.txt"):
        with pytest.raises(UsageError, match=name):
            inputs(f"input={folder}/{name}")


def test_a_stopped_job_keeps_what_is_whole(run_dir, tiny_cohort, tmp_path, monkeypatch):
    out, cohort = tmp_path / "out", f"data.cohort_dir={tiny_cohort}"
    calls = []
    real = predict.probability_map

    def dies_at_second(*arguments: object, **named: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict, "probability_map", dies_at_second)
        run_segment(run_dir, out, cohort)
    first = (out / "sub-4.nii.gz").stat().st_mtime_ns
    record = run_segment(run_dir, out, cohort)
    assert (out / "sub-4.nii.gz").stat().st_mtime_ns == first
    assert list(record["volumes"]) == ["sub-4", "sub-5"]
    assert record["volumes"]["sub-5"]["output_sha256"] == sha256_of(out / "sub-5.nii.gz")
    assert record["settings"]["checkpoint"] == "step_00000001"  # the best, not the newest
    (out / "sub-4.nii.gz").write_bytes(b"damaged")
    repaired = run_segment(run_dir, out, cohort)
    assert repaired["volumes"]["sub-4"] == record["volumes"]["sub-4"]
    assert sha256_of(out / "sub-4.nii.gz") == record["volumes"]["sub-4"]["output_sha256"]


def test_a_foreign_folder_is_never_written_into(run_dir, tiny_cohort, tmp_path):
    cohort = f"data.cohort_dir={tiny_cohort}"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(UsageError, match="mine"):
        run_segment(run_dir, tmp_path / "mine", cohort)
    run_segment(run_dir, tmp_path / "out", cohort)
    with pytest.raises(UsageError, match="threshold: 0.5 -> 0.3"):
        run_segment(run_dir, tmp_path / "out", cohort, "threshold=0.3")
    with pytest.raises(UsageError, match="checkpoint: step_00000001 -> step_00000002"):
        run_segment(run_dir, tmp_path / "out", cohort, "checkpoint=step_00000002")
    folder = tiny_cohort / "nifti" / "sub-4"
    before = sorted(folder.iterdir())
    with pytest.raises(UsageError, match=str(folder)):
        run_segment(run_dir, folder, f"input={folder}")
    assert sorted(folder.iterdir()) == before


def test_an_unfinished_run_needs_a_named_checkpoint(run_dir, tiny_cohort, tmp_path):
    (run_dir / "finished.json").unlink()
    with pytest.raises(UsageError, match="checkpoint="):
        best_checkpoint(RunDir(run_dir))
    record = run_segment(run_dir, tmp_path / "out", f"data.cohort_dir={tiny_cohort}", "checkpoint=step_00000002")
    assert record["settings"]["checkpoint"] == "step_00000002"


def test_weights_of_another_architecture_are_refused(run_dir, tiny_cohort, tmp_path):
    config = parse("train_unet", None, ["unet.filters=[4,6,12]"]).config
    (run_dir / "config.yaml").write_text(to_yaml(dataclasses.replace(config)))
    with pytest.raises(CheckpointError):
        run_segment(run_dir, tmp_path / "out", f"data.cohort_dir={tiny_cohort}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "float64"])
def test_the_label_has_the_images_number_type(run_dir, tmp_path, dtype):
    voxels = (image(12, 12, 8, seed=2) / 2 + 1).astype(dtype)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "head.nii.gz")
    run_segment(run_dir, tmp_path / "out", f"input={tmp_path}/head.nii.gz", "threshold=0.4")
    found = nib.load(tmp_path / "out" / "head.nii.gz")
    assert found.get_data_dtype() == np.dtype(dtype).newbyteorder("=")
    assert set(np.unique(np.asarray(found.dataobj)).tolist()) <= {0, 1}


def test_small_parts_are_removed_only_when_asked():
    label = np.zeros((10, 10, 10), bool)
    label[1, 1, 1] = label[2, 2, 2] = True  # touch by a corner: one part of two voxels
    label[6, 6, 2:8] = True
    label[9, 0, 0] = True
    kept, removed = remove_small_components(label, None)
    assert kept is label and removed == 0
    kept, removed = remove_small_components(label, 2)
    assert (int(kept.sum()), removed) == (8, 1) and not kept[9, 0, 0]
    kept, removed = remove_small_components(label, 7)
    assert (int(kept.sum()), removed) == (0, 3)


def test_two_ranks_segment_what_one_does(run_dir, tmp_path, repository, run_on_ranks):
    for number in range(3):
        write_volume(tmp_path / "in" / f"head-{number}.nii.gz", image(18, 14, 10, seed=number) + 1, np.eye(4))
    words = [f"run={run_dir}", f"input={tmp_path}/in", "runtime.device=cpu", "min_component_voxels=3"]
    alone = run_segment(run_dir, tmp_path / "alone", *words[1:])
    run_on_ranks([f"{repository}/launch/segment.py", *words, f"out={tmp_path}/two"])
    both = json.loads((tmp_path / "two" / "segmentation.json").read_text())
    assert set(both["volumes"]) == set(alone["volumes"]) == {"head-0", "head-1", "head-2"}
    assert {name: entry["output_sha256"] for name, entry in both["volumes"].items()} == {
        name: entry["output_sha256"] for name, entry in alone["volumes"].items()
    }
    assert sorted(path.name for path in (tmp_path / "two").glob("*.json")) == ["segmentation.json"]


def test_what_ranks_left_behind_when_stopped_is_kept(run_dir, tmp_path):
    write_volume(tmp_path / "in" / "head.nii.gz", image(18, 14, 10) + 1, np.eye(4))
    record = run_segment(run_dir, tmp_path / "out", f"input={tmp_path}/in")
    # As if rank 1 had done it and the job had been stopped before the end.
    (tmp_path / "out" / "segmentation.rank-1.json").write_text(json.dumps(record))
    (tmp_path / "out" / "segmentation.json").write_text(json.dumps(record | {"volumes": {}}))
    before = (tmp_path / "out" / "head.nii.gz").stat().st_mtime_ns
    assert run_segment(run_dir, tmp_path / "out", f"input={tmp_path}/in") == record
    assert (tmp_path / "out" / "head.nii.gz").stat().st_mtime_ns == before
    assert not (tmp_path / "out" / "segmentation.rank-1.json").exists()


def test_images_of_other_spacing_are_said(run_dir, tmp_path, caplog):
    for name, spacing in (("same", 0.5), ("coarse", 0.9)):
        write_volume(tmp_path / name / "image.nii.gz", image(*PATCH), np.diag([spacing, 0.5, 0.7, 1]))
    run_segment(run_dir, tmp_path / "out", f"input={tmp_path / 'same' / 'image.nii.gz'}")
    assert "may be wrong" not in caplog.text and Predictions(tmp_path / "out").warnings() == {}
    run_segment(run_dir, tmp_path / "out-coarse", f"input={tmp_path / 'coarse' / 'image.nii.gz'}")
    text = "voxels of 0.9 x 0.5 x 0.7 mm, the U-Net learned from 0.5 x 0.5 x 0.7 mm"
    assert text in caplog.text and Predictions(tmp_path / "out-coarse").warnings() == {"image": [text]}


def test_images_preprocessed_otherwise_are_refused(run_dir, tmp_path, caplog):
    path = tmp_path / "in" / "image.nii.gz"
    write_volume(path, image(*PATCH), np.diag([0.5, 0.5, 0.7, 1]))
    predict.check_preprocessing(None, [Input(path)])
    with pytest.raises(DataError, match="not preprocessed.*allow_mismatch=true"):
        predict.check_preprocessing(True, [Input(path)])
    path.with_name("image.json").write_text("{}")
    with pytest.raises(DataError, match="learned from raw volumes"):
        run_segment(run_dir, tmp_path / "out", f"input={path}")
    assert not (tmp_path / "out").exists()
    run_segment(run_dir, tmp_path / "out", f"input={path}", "allow_mismatch=true")
    assert "may be wrong" in caplog.text


def test_links_out_of_the_input_folder_are_refused(run_dir, tmp_path):
    write_volume(tmp_path / "elsewhere" / "head.nii.gz", image(*PATCH), np.eye(4))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "head.nii.gz").symlink_to(tmp_path / "elsewhere" / "head.nii.gz")
    words = [f"run={run_dir}", "out=out", f"input={tmp_path / 'in'}"]
    with pytest.raises(DataError, match="leads out of .*follow_links=true"):
        find_inputs(parse("segment", None, words).config)
    assert list(find_inputs(parse("segment", None, [*words, "follow_links=true"]).config)[0]) == ["head"]
    assert list(find_inputs(parse("segment", None, [*words[:2], f"input={tmp_path / 'in/head.nii.gz'}"]).config)[0])


def test_a_padded_image_is_refused(run_dir, tmp_path):
    padded = image(18, 14, 10) + 1
    padded[:, 0] = -2000
    write_volume(tmp_path / "head.nii.gz", padded, np.eye(4))
    with pytest.raises(DataError, match=r"head\.nii\.gz.*lower_percentile"):
        run_segment(run_dir, tmp_path / "out", f"input={tmp_path}/head.nii.gz")


def test_a_cohort_is_scaled_by_its_own_limits(run_dir, tiny_cohort, tmp_path):
    cohort = Cohort.read(tiny_cohort)
    limits = {name: subject.limits for name, subject in cohort.of_split("test").items()}
    dataclasses.replace(cohort, percentiles=(6.0, 99.9)).write(tmp_path / "cohort")
    record = run_segment(run_dir, tmp_path / "out", f"data.cohort_dir={tmp_path}/cohort")
    assert {name: tuple(entry["limits"]) for name, entry in record["volumes"].items()} == limits
    assert record["settings"]["percentiles"] == [6.0, 99.9]
    assert all("percentiles" in warning for entry in record["volumes"].values() for warning in entry["warnings"])


def test_an_image_changed_since_the_check_is_refused(run_dir, tiny_cohort, tmp_path):
    cohort = Cohort.read(tiny_cohort)
    one, other = cohort.of_split("test").values()
    swapped = dataclasses.replace(one, image=other.image)
    dataclasses.replace(cohort, subjects={"sub-4": swapped}, is_pseudonymous=True).write(tmp_path / "cohort")
    with pytest.raises(DataError, match="sub-4") as refusal:
        run_segment(run_dir, tmp_path / "out", f"data.cohort_dir={tmp_path}/cohort")
    assert str(tiny_cohort) not in str(refusal.value)


def test_a_missing_image_is_told_without_its_path(run_dir, tiny_cohort, tmp_path):
    cohort = Cohort.read(tiny_cohort)
    (one, *_) = cohort.of_split("test").values()
    image = tmp_path / "JANE.nii.gz"
    image.write_bytes(one.image.read_bytes())
    moved = dataclasses.replace(one, image=image)
    dataclasses.replace(cohort, subjects={"sub-4": moved}, is_pseudonymous=True).write(tmp_path / "cohort")
    run_segment(run_dir, tmp_path / "out", f"data.cohort_dir={tmp_path}/cohort")
    image.unlink()
    with pytest.raises(DataError, match="^the image of sub-4") as refusal:
        run_segment(run_dir, tmp_path / "out", f"data.cohort_dir={tmp_path}/cohort")
    assert "JANE" not in str(refusal.value)
