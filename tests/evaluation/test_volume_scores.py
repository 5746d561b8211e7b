import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from vesselgan.config.compose import parse
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import DataError, UsageError, exit_on_error
from vesselgan.evaluation.run import evaluate
from vesselgan.evaluation.volume_scores import dice_by_level
from vesselgan.formats.cohort import Cohort, Subject
from vesselgan.formats.predictions import Predictions
from vesselgan.formats.volumes import read_label, write_volume
from vesselgan.metrics.overlap import dice

from ..conftest import edit_json
from ..conftest import write_subject as write_volumes

SHAPE, SPACING = (8, 6, 6), (0.5, 0.5, 2.0)
AFFINE = np.diag([*SPACING, 1.0])


def bar(first: int, last: int, *, y: int = 2, z: int = 2) -> np.ndarray:
    """A line of voxels along x."""
    label = np.zeros(SHAPE, np.uint8)
    label[first : last + 1, y, z] = 1
    return label


def write_subject(folder: Path, name: str, split: str, image: np.ndarray, label: np.ndarray, *, mask: bool) -> Subject:
    """The brain mask, where there is one, is the half x < 4."""
    half = np.zeros(SHAPE, np.uint8)
    half[:4] = 1
    arrays = {"image": image, "label": label} | ({"mask": half} if mask else {})
    return write_volumes(folder / "nifti" / name, split, arrays, AFFINE)


def write_two(folder: Path, *, masks: tuple[bool, bool] = (True, True)) -> dict[str, Path]:
    """Two test subjects with a bar of six voxels, x = 1 to 6; predicted: one to the right, and nothing."""
    truth = bar(1, 6)
    subjects = {
        name: write_subject(folder, name, "test", truth * 100.0 + number, truth, mask=mask)
        for number, (name, mask) in enumerate(zip(["sub-1", "sub-2"], masks, strict=True))
    }
    Cohort("bars", (0.0, 99.99), subjects).write(folder)
    predictions = {name: folder / "predictions" / f"{name}.nii.gz" for name in subjects}
    write_volume(predictions["sub-1"], bar(2, 7), AFFINE)
    write_volume(predictions["sub-2"], np.zeros(SHAPE, np.uint8), AFFINE)
    return predictions


def run(folder: Path, *settings: str) -> dict:
    out = folder / "result.json"
    words = [f"data.cohort_dir={folder}", "name=real", *settings]
    words += [] if any(word.startswith("out=") for word in settings) else [f"out={out}"]
    if "evaluate=threshold" not in settings:
        words.insert(0, f"predictions={folder}/predictions")
    evaluate(parse("evaluate", None, words).config)
    return json.loads(out.read_text())


def scores(result: dict, subject: str, region: str) -> dict:
    (entry,) = [e for e in result["subjects"] if (e["subject"], e["region"]) == (subject, region)]
    return entry


def test_scores_of_hand_made_bars(tmp_path):
    write_two(tmp_path)
    result = run(tmp_path)
    whole = scores(result, "sub-1", "all")
    assert whole["dice"] == 2 * 5 / 12
    assert whole["bavd_voxels"] == (1 + 1) / (2 * 6)  # x = 1 is one from the prediction, x = 7 one from the label
    assert whole["bavd_mm"] == (0.5 + 0.5) / (2 * 6)
    inside = scores(result, "sub-1", "intracranial")  # both cut to x < 4: the label is 1 2 3, the prediction 2 3
    assert inside["dice"] == 2 * 2 / 5
    assert inside["bavd_voxels"] == 1 / (2 * 3)
    empty = scores(result, "sub-2", "all")
    assert (empty["dice"], empty["predicted_voxels"], empty["truth_voxels"]) == (0.0, 0, 6)
    assert empty["bavd_voxels"] == pytest.approx(np.sqrt(8**2 + 6**2 + 6**2))
    assert empty["bavd_mm"] == pytest.approx(13.0)  # 4, 3 and 12 mm
    dice_values = {"mean": 5 / 12, "sd": np.std([10 / 12, 0], ddof=1), "median": 5 / 12, "n": 2}
    assert result["summary"]["all"]["dice"] == pytest.approx(dice_values)


def test_a_result_names_the_patients(tmp_path):
    write_two(tmp_path)
    edit_json(tmp_path / "cohort.json", lambda cohort: cohort["subjects"]["sub-2"].update(patient="ann"))
    assert run(tmp_path)["patients"] == {"sub-1": "sub-1", "sub-2": "ann"}


def write_record(folder: Path, settings: dict, *, warnings: list[str] | None = None) -> None:
    """What `segment` says of the predictions in `folder`, where the warnings are sub-1's."""
    volumes = {
        name: {
            "warnings": warnings or [] if name == "sub-1" else [],
            "image_sha256": sha256_of(folder / "nifti" / name / "image.nii.gz"),
            "output_sha256": sha256_of(folder / "predictions" / f"{name}.nii.gz"),
        }
        for name in ("sub-1", "sub-2")
    }
    Predictions(folder / "predictions").write(settings, volumes)


@pytest.mark.parametrize("change", ["image", "prediction", "cohort", "record"])
def test_predictions_of_other_images_are_refused(tmp_path, capsys, change):
    write_two(tmp_path)
    write_record(tmp_path, {})
    run(tmp_path)
    (tmp_path / "result.json").unlink()
    replaced = tmp_path / "nifti/sub-1/image.nii.gz"
    words = []
    if change == "image":
        write_volume(replaced, bar(0, 3) * np.float32(50), AFFINE)
    elif change == "prediction":
        write_volume(tmp_path / "predictions/sub-1.nii.gz", bar(0, 3), AFFINE)
    elif change == "cohort":
        write_two(tmp_path / "other")  # another one of the same ids and grid
        write_volume(tmp_path / "other/nifti/sub-1/image.nii.gz", bar(0, 3) * np.float32(50), AFFINE)
        words = [f"data.cohort_dir={tmp_path}/other"]
    else:
        edit_json(tmp_path / "predictions/segmentation.json", lambda record: record["volumes"].pop("sub-1"))
    code, said = refused(capsys, tmp_path, *words)
    assert code == 3 and "sub-1.nii.gz" in said


@pytest.mark.parametrize("fault", ["image", "prediction", "mask", "no image", "unreadable label", "fit"])
def test_errors_of_pseudonymous_cohorts_name_no_files(tmp_path, capsys, fault):
    write_two(tmp_path)
    write_record(tmp_path, {})
    cohort = Cohort.read(tmp_path)
    files, other, words = tmp_path / "nifti/sub-1", np.ones((8, 6, 5), np.float32), []
    if fault == "image":
        write_volume(files / "image.nii.gz", bar(0, 3) * np.float32(50), AFFINE)
    elif fault == "prediction":
        (tmp_path / "predictions/segmentation.json").unlink()
        write_volume(tmp_path / "predictions/sub-1.nii.gz", other, AFFINE)
    elif fault == "mask":
        write_volume(files / "mask.nii.gz", other, AFFINE)
    elif fault == "no image":
        (files / "image.nii.gz").unlink()
    elif fault == "unreadable label":
        (files / "label.nii.gz").unlink()
        (files / "label.nii.gz").symlink_to(tmp_path / "nifti/label.nii.gz")
    else:
        words, files = ["evaluate=threshold"], tmp_path / "nifti/sub-3"
        label = bar(0, 3)
        cohort.subjects["sub-3"] = write_subject(tmp_path, "sub-3", "validation", label * 90.0, label, mask=True)
        write_volume(files / "mask.nii.gz", other, AFFINE)
    dataclasses.replace(cohort, is_pseudonymous=True).write(tmp_path)
    code, said = refused(capsys, tmp_path, *words)
    assert code == 3 and "of sub-" in said and "nifti" not in said


def test_a_result_says_what_went_in(tmp_path):
    predictions = write_two(tmp_path)
    settings = {"run": "unet-a", "source": "synthetic", "shuffle_labels": True, "threshold": 0.4}
    write_record(tmp_path, settings, warnings=["coarse"])
    result = run(tmp_path)
    expected = {"format_version": 1, "job": "segmentation", "name": "real", "cohort": "bars", "split": "test"}
    expected |= {"threshold": 0.4, "segmented_with": settings, "input_warnings": {"sub-1": ["coarse"]}}
    assert {key: result[key] for key in expected} == expected
    assert "labels shuffled" in result["title"] and result["training_overlap"].startswith("not checked")
    assert result["units"]["bavd_voxels"] == "voxel" and set(result["units"]) == set(result["summary"]["all"])
    assert result["empty"]["all"] == {"truth": 0, "predicted": 1}
    assert result["inputs"]["sub-1 prediction"] == sha256_of(predictions["sub-1"])
    assert result["inputs"]["cohort.json"] == sha256_of(tmp_path / "cohort.json")
    assert {"sub-1 label", "sub-2 mask"} < set(result["inputs"])
    assert str(tmp_path) not in json.dumps({key: result[key] for key in result if key != "provenance"})


def test_one_missing_mask_stops_the_command(tmp_path, capsys):
    write_two(tmp_path / "none", masks=(False, False))
    assert {entry["region"] for entry in run(tmp_path / "none")["subjects"]} == {"all"}
    write_two(tmp_path / "one", masks=(True, False))
    code, said = refused(capsys, tmp_path / "one")
    assert code == 3 and "sub-2" in said and "data.layout.mask=null" in said
    write_two(tmp_path / "lost")
    (tmp_path / "lost" / "nifti" / "sub-1" / "mask.nii.gz").unlink()
    with pytest.raises(DataError, match="sub-1/mask.nii.gz"):
        run(tmp_path / "lost")


def test_missing_and_misplaced_predictions_are_named(tmp_path):
    predictions = write_two(tmp_path)
    write_volume(predictions["sub-1"], bar(2, 7), AFFINE + np.diag([0.1, 0, 0, 0]))
    with pytest.raises(DataError, match="sub-1: .* grid"):
        run(tmp_path)
    predictions["sub-2"].unlink()
    with pytest.raises(DataError, match="sub-2"):
        run(tmp_path)
    with pytest.raises(UsageError, match="predictions="):
        run(tmp_path, "predictions=null")
    with pytest.raises(UsageError, match="threshold"):  # predictions are cut already
        run(tmp_path, "threshold=0.4")


def refused(capsys, folder: Path, *settings: str) -> tuple[int, str]:
    """The exit code of a run that is refused, and what it says; no result was written."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        exit_on_error(lambda: run(folder, *settings))
    assert not (folder / "result.json").exists()
    return stopped.value.code, capsys.readouterr().err


def write_bright(folder: Path) -> None:
    """Vessels inside the mask at 100, outside at 60; a distractor of 80 outside the mask, background 20. One voxel of
    the test subject's background inside the mask is 110."""
    subjects = {}
    for name, split, y in [("sub-1", "validation", 2), ("sub-2", "test", 3)]:
        image = np.full(SHAPE, 20.0)
        label = bar(1, 6, y=y)
        image[1:4, y, 2], image[4:7, y, 2] = 100, 60
        image[5, 4, 4] = 80
        image[0, 0, 0] = 110 if split == "test" else 21
        subjects[name] = write_subject(folder, name, split, image, label, mask=True)
    Cohort("bright", (0.0, 99.99), subjects).write(folder)


def test_the_threshold_is_fitted_on_validation(tmp_path):
    write_bright(tmp_path)
    result = run(tmp_path, "evaluate=threshold", "name=threshold")
    # Whole head: from just above 21 to 60 all 6 vessel voxels and the distractor, Dice 12/13; above 80 only 6/9.
    # Of equals the lowest: the first level above 21. Inside the mask: above 21, without a distractor, Dice 1.
    assert result["thresholds"] == {"all": 21 + 1 / 257, "intracranial": 21 + 1 / 257}
    assert result["threshold"] == result["thresholds"]["all"]
    assert scores(result, "sub-2", "all")["dice"] == 2 * 6 / (6 + 8)
    assert scores(result, "sub-2", "intracranial")["dice"] == 2 * 3 / (3 + 4)
    assert result["fitted_on"] == {"cohort": "bright", "split": "validation", "subjects": ["sub-1"]}
    assert (result["name"], result["split"]) == ("threshold", "test")
    assert {"fitted on sub-1 image", "sub-2 image"} < set(result["inputs"])


def test_a_threshold_is_not_scored_where_fitted(tmp_path, capsys):
    write_bright(tmp_path)
    code, said = refused(capsys, tmp_path, "evaluate=threshold", "split=validation")
    assert code == 2 and "split=validation" in said
    scored = Cohort.read(tmp_path).subjects["sub-2"]
    other = Cohort("other", (0.0, 99.99), {"patient-x": dataclasses.replace(scored, split="validation")})
    other.write(tmp_path / "other")
    code, said = refused(capsys, tmp_path, "evaluate=threshold", f"fit_cohort={tmp_path}/other")
    assert code == 3 and "sub-2 is patient-x" in said


def test_test_subjects_have_no_say_in_the_threshold(tmp_path):
    write_bright(tmp_path)
    before = run(tmp_path, "evaluate=threshold")["thresholds"]
    dark = write_subject(tmp_path, "sub-2", "test", 250.0 - bar(0, 0), bar(0, 0), mask=True)
    cohort = Cohort.read(tmp_path)
    dataclasses.replace(cohort, subjects=cohort.subjects | {"sub-2": dark}).write(tmp_path)
    after = run(tmp_path, "evaluate=threshold")
    assert after["thresholds"] == before and scores(after, "sub-2", "all")["dice"] < 0.01


def test_dice_by_level_is_dice_of_the_cut():
    rng = np.random.default_rng(0)
    level = rng.integers(0, 65536, 500).astype(np.uint16)
    truth = level + rng.normal(0, 2e4, 500) > 4e4
    found = dice_by_level(level, truth)
    assert found.shape == (65536,)
    for k in [0, 1, 20000, int(level[7]), int(level[7]) + 1, 65535]:
        assert found[k] == pytest.approx(dice(truth, level >= k), abs=1e-15)
    nothing = dice_by_level(level, np.zeros(500, bool))
    assert nothing[0] == 0.0 and dice_by_level(level[:0], truth[:0])[0] == 1.0


def test_another_cohorts_threshold_comes_from_the_first(tmp_path):
    write_bright(tmp_path / "first")
    write_two(tmp_path / "other")  # has no validation subject of its own
    with pytest.raises(DataError, match="no subject in split validation"):
        run(tmp_path / "other", "evaluate=threshold")
    result = run(tmp_path / "other", "evaluate=threshold", f"fit_cohort={tmp_path}/first")
    assert result["fitted_on"] == {"cohort": "bright", "split": "validation", "subjects": ["sub-1"]}
    assert result["cohort"] == "bars"
    # Vessels of 100 on a background of 0: the level above 21 cuts out the label itself.
    assert scores(result, "sub-1", "all")["dice"] == 1.0


def test_error_maps_are_written_where_asked(tmp_path):
    write_two(tmp_path)
    run(tmp_path, f"error_maps={tmp_path}/errors")
    errors = read_label(tmp_path / "errors" / "sub-1.nii.gz", label_values=[1, 2, 3])
    assert errors.data_XYZ.sum() == 7  # x = 1 to 7
    assert sorted(path.name for path in (tmp_path / "errors").iterdir()) == [
        f"sub-{n}.{kind}" for n in (1, 2) for kind in ("nii.gz", "png")
    ]


@pytest.mark.parametrize("role", ["label", "mask"])
def test_volumes_changed_since_the_check_are_refused(tmp_path, role):
    write_two(tmp_path)
    path = tmp_path / "nifti" / "sub-1" / f"{role}.nii.gz"
    write_volume(path, bar(0, 3), AFFINE)
    with pytest.raises(DataError, match=str(path)):
        run(tmp_path)


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("out", "predictions/segmentation.json"),
        ("out", "cohort.json"),
        ("out", "."),
        ("out", "cohort.json/result.json"),
        ("error_maps", "predictions"),
        ("error_maps", "nifti/sub-1"),
        ("error_maps", "others"),
        ("error_maps", "cohort.json"),
    ],
)
def test_outputs_replace_nothing_of_others(tmp_path, setting, place):
    write_two(tmp_path)
    write_volume(tmp_path / "others" / "sub-1.nii.gz", bar(1, 6), AFFINE)
    (tmp_path / "predictions" / "segmentation.json").write_text(
        json.dumps({"format_version": 2, "settings": {}, "volumes": {}})
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=f"{setting}="):
        run(tmp_path, f"{setting}={tmp_path / place}")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_results_and_error_maps_are_made_again(tmp_path):
    write_two(tmp_path)
    first = run(tmp_path, f"error_maps={tmp_path}/errors")
    assert run(tmp_path, f"error_maps={tmp_path}/errors")["subjects"] == first["subjects"]
